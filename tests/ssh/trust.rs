//! Who is believed to be the device, how it is logged in to, and the way there.

use vnode::api::{HostKeyPolicy, SshConfig, SshJump};
use vnode::provider::{Provider, ProviderError};

use crate::sshd::{Flavour, Sshd};
use crate::world::{World, script};

async fn said(provider: &dyn Provider) -> String {
    match provider.ping().await {
        Ok(()) => String::new(),
        Err(ProviderError::Unavailable { message, .. }) => message,
        Err(other) => panic!("nothing but unavailable, not {other:?}"),
    }
}

#[tokio::test]
async fn only_the_device_with_the_pinned_key_is_talked_to() {
    let (Some(sshd), Some(stranger)) = (Sshd::start(Flavour::Machine), Sshd::start(Flavour::Machine)) else { return };
    let world = World::new(sshd, None);
    let build = |config: &SshConfig, known: &str| {
        let mut secret = world.secret();
        secret.insert("known_hosts".into(), known.to_owned().into());
        world.build_with(world.context(), config, secret)
    };
    let (key, port) = (world.sshd.host_key(), world.sshd.port);
    let none = SshConfig { host_key: None, ..world.config.clone() };
    assert!(build(&none, "").is_err(), "no key is known, and none is taken");
    assert_eq!(said(&*build(&none, &format!("[127.0.0.1]:{port} {key}\n")).unwrap()).await, "");
    let other = format!("[127.0.0.1]:{port} {}\n", stranger.host_key());
    assert!(said(&*build(&none, &other).unwrap()).await.contains("known_hosts has another"));
    let wrong = SshConfig { host_key: Some(stranger.host_key()), ..world.config.clone() };
    assert!(said(&*build(&wrong, "").unwrap()).await.contains("is it the right device?"));

    let first = SshConfig { host_key_policy: Some(HostKeyPolicy::TrustOnFirstUse), ..none.clone() };
    assert_eq!(said(&*build(&first, "").unwrap()).await, "");
    assert_eq!(said(&*build(&first, "").unwrap()).await, "");
    // The same address has another key.
    let (mut world, mut stranger) = (world, stranger);
    world.sshd.stop();
    let config = std::fs::read_to_string(stranger.directory().with_file_name("config")).unwrap();
    let config = config.replace(&format!("Port {}", stranger.port), &format!("Port {port}"));
    stranger.stop();
    std::fs::write(stranger.directory().with_file_name("config"), config).unwrap();
    stranger.port = port;
    stranger.serve().unwrap();
    let mut secret = world.secret();
    secret.insert("ssh-privatekey".into(), stranger.key("user").into());
    let provider = world.build_with(world.context(), &first, secret).unwrap();
    assert!(said(&*provider).await.contains("when it was first used"));
}

#[tokio::test]
async fn a_device_that_does_not_let_us_in_is_told_with_what_was_tried() {
    let (Some(sshd), Some(other)) = (Sshd::start(Flavour::Machine), Sshd::start(Flavour::Machine)) else { return };
    let world = World::new(sshd, None);
    let mut secret = world.secret();
    secret.insert("ssh-privatekey".into(), other.key("user").into());
    secret.insert("password".into(), "wrong-password".into());
    let provider = world.build_with(world.context(), &world.config, secret).unwrap();
    let told = said(&*provider).await;
    assert!(told.contains("does not let") && told.contains("the key or the password"), "{told}");
    assert!(!told.contains("wrong-password"));
    let again = std::time::Instant::now();
    assert_eq!(said(&*provider).await, told, "the device is not asked again at once");
    assert!(again.elapsed() < std::time::Duration::from_millis(500));
}

#[tokio::test]
async fn a_device_behind_jumps_is_reached_with_an_rsa_key() {
    let (Some(sshd), Some(gate)) = (Sshd::start(Flavour::Machine), Sshd::start(Flavour::Machine)) else { return };
    let mut world = World::new(sshd, None);
    // Both let the same key in.
    let key = |dir: &std::path::Path| dir.with_file_name("authorized");
    std::fs::copy(key(&world.sshd.directory()), key(&gate.directory())).unwrap();
    world.config.jumps = vec![SshJump {
        host: "127.0.0.1".into(),
        port: Some(gate.port),
        host_key: Some(gate.host_key()),
        ..SshJump::default()
    }];
    let secret = [("ssh-privatekey".to_owned(), world.sshd.key("rsa").into())].into();
    let provider = world.build_with(world.context(), &world.config, secret).unwrap();
    provider.ping().await.unwrap();
    let reference = script(1, "exit 3").create(&provider).await;
    assert_eq!(world.ends(&reference).await, 3);
    provider.remove_pod(&reference).await.unwrap();
    world.config.jumps[0].host_key = Some(world.sshd.host_key());
    let told = said(&*world.provider()).await;
    assert!(told.contains(&gate.port.to_string()) && told.contains("right device"), "the jump is to blame: {told}");
}
