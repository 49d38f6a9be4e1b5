//! Nobody reads from a node who may not.

use std::process::Command;

use crate::support::{Bed, pod};

#[test]
fn the_kubelet_api_refuses_strangers_and_says_nothing_about_pods() {
    let bed = Bed::new();
    let (node, name) = (bed.name("closed"), bed.name("private"));
    bed.ready_node(&node, "");
    bed.apply(&pod(&name, &node, ""));
    bed.wait_phase(&name, "Running");
    let endpoint = bed.kubectl(&format!("get vn {node} -o jsonpath={{.status.kubelet.endpoint}}"));
    let ask = |path: &str, token: Option<&str>| {
        let mut curl = Command::new("curl");
        curl.args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", "-m", "20"]);
        if let Some(token) = token {
            curl.args(["-H", &format!("Authorization: Bearer {token}")]);
        }
        let out = curl.arg(format!("https://{endpoint}{path}")).output().expect("curl is on the PATH");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let there = format!("/containerLogs/{}/{name}/main", bed.namespace);
    for path in ["/pods", "/healthz", "/metrics", "/stats/summary", &there, "/containerLogs/default/none/main", "/"] {
        assert_eq!(ask(path, None), "401", "{path} without credentials");
        assert_eq!(ask(path, Some("rubbish")), "401", "{path} with a bad token");
    }
    bed.kubectl(&format!("create serviceaccount {}", bed.name("nobody")));
    let token = bed.kubectl(&format!("create token {}", bed.name("nobody")));
    for path in [there.as_str(), "/containerLogs/default/none/main", "/pods"] {
        assert_eq!(ask(path, Some(token.trim())), "403", "{path} with an account that has no rights");
    }
    bed.kubectl(&format!("create clusterrole {} --verb=get --resource=nodes/log,nodes/pods", bed.name("reader")));
    bed.kubectl(&format!(
        "create clusterrolebinding {0} --clusterrole={0} --serviceaccount={2}:{1}",
        bed.name("reader"),
        bed.name("writer"),
        bed.namespace
    ));
    bed.kubectl(&format!("create serviceaccount {}", bed.name("writer")));
    let token = bed.kubectl(&format!("create token {}", bed.name("writer")));
    assert_eq!(ask("/pods", Some(token.trim())), "200", "nodes/pods is enough for /pods");
    assert_eq!(ask("/stats/summary", Some(token.trim())), "403", "but not for /stats");
    bed.kubectl(&format!("delete clusterrole,clusterrolebinding {}", bed.name("reader")));
    bed.kubectl(&format!("delete serviceaccount {} {}", bed.name("nobody"), bed.name("writer")));
}
