//! Nonsense over the wire: every kind of it has its answer, and nothing of it stops the server or hurts others.

use std::time::Duration;

use crate::support::{Client, DEADLINE, start};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use vnode_devcluster::{DevCluster, Options};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: (&str, &str) = ("content-type", "application/json");
/// What it is, its type, the body, and what the answer says.
type Case<'a> = (&'a str, (&'a str, &'a str), &'a [u8], &'a str);

const YAML: (&str, &str) = ("content-type", "application/yaml");

fn map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}})
}

/// Whether the cluster still does its work.
async fn works(client: &Client) {
    let name = format!("works-{}", rand::random::<u32>());
    assert_eq!(client.post(MAPS, &map(&name, "1")).await.code, 201);
    assert_eq!(client.get(&format!("{MAPS}/{name}")).await.json()["data"]["k"], "1");
}

#[tokio::test]
async fn malformed_bodies_are_bad_requests_that_say_what_was_wrong() {
    let (cluster, client) = start(Options::default()).await;
    let deep = format!("{}1{}", "{\"a\":".repeat(5000), "}".repeat(5000));
    let deep_list = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_yaml: String = (0..3000).map(|depth| format!("{}a:\n", " ".repeat(depth.min(900)))).collect();
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
        d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n\
        g: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
    let cases: [Case<'_>; 14] = [
        ("no JSON", JSON, b"{not json", "must be of type ConfigMap): couldn't get version/kind; json parse error"),
        ("its beginning", JSON, b"{not json", "({not json)"),
        ("nothing", JSON, b"", "(<empty>)"),
        ("a list", JSON, b"[1]", "the object provided is unrecognized"),
        ("a cut object", JSON, b"{\"kind\":\"ConfigMap\"", "json parse error"),
        ("no text", JSON, b"\xff\xfe\x00", "fffe00"),
        ("a number that is none", JSON, b"{\"a\":1e999}", "json parse error"),
        ("deep JSON", JSON, deep.as_bytes(), "exceeded max depth"),
        ("deep lists", JSON, deep_list.as_bytes(), "exceeded max depth"),
        ("no YAML", YAML, b"a: [", "the object provided is unrecognized"),
        ("deep YAML", YAML, deep_yaml.as_bytes(), "the object provided is unrecognized"),
        ("a YAML bomb", YAML, bomb.as_bytes(), "the object provided is unrecognized"),
        ("no protobuf", ("content-type", "application/vnd.kubernetes.protobuf"), b"k8s\0\xff\xff", "unrecognized"),
        ("metadata that is none", JSON, br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":7}"#, "metadata"),
    ];
    for (what, media, body, says) in cases {
        let answer = client.send("POST", MAPS, &[media], body.to_vec()).await;
        assert_eq!(answer.json()["reason"], "BadRequest", "{what}: {}", answer.text());
        assert!(answer.code == 400 && answer.message().contains(says), "{what}: {}", answer.text());
    }
    works(&client).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn bodies_over_three_mebibytes_are_refused_and_their_senders_hear_it() {
    let (cluster, client) = start(Options::default()).await;
    for length in [(3 << 20) + 1, 8 << 20, 40 << 20] {
        let body = vec![b' '; length];
        // A body that nobody wants to read to its end may break the connection before the answer is read.
        match client.try_send("POST", MAPS, &[JSON], body).await {
            Ok(answer) => {
                let status = answer.json();
                assert_eq!(
                    (answer.code, status["reason"].as_str(), status["message"].as_str()),
                    (413, Some("RequestEntityTooLarge"), Some("Request entity too large: limit is 3145728"))
                );
            }
            Err(error) => assert!(length > 32 << 20, "{length} bytes: {error}"),
        }
    }
    // Small enough for a request, too large for the store.
    let answer = client.post(MAPS, &map("large", &"x".repeat(2 << 20))).await;
    assert!((400..=500).contains(&answer.code), "{}", answer.code);
    works(&client).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn what_is_not_served_is_not_found_in_kubernetes_words() {
    let (cluster, client) = start(Options::default()).await;
    let status = "the server could not find the requested resource";
    for (path, says) in [
        ("/apis/nope.example.com/v1", None),
        ("/apis/nope.example.com/v1/things", None),
        ("/nothing", None),
        ("/api/v1/frobs", Some(status)),
        ("/api/v1/namespaces/default/frobs/x", Some(status)),
        ("/apis/apps/v1/namespaces/default/deployments/x/frob", Some(status)),
        ("/apis/apps/v9/deployments", None),
        ("/api/v1/pods/x", Some(status)),
        ("/api/v1/namespaces/default/configmaps/x/status", Some(status)),
    ] {
        let answer = client.get(path).await;
        assert_eq!(answer.code, 404, "{path}");
        match says {
            Some(says) => assert_eq!(answer.message(), says, "{path}"),
            None => assert_eq!(answer.text().trim(), "404 page not found", "{path}"),
        }
    }
    assert_eq!(client.post("/api/v1/configmaps", &map("a", "1")).await.code, 405);
    assert_eq!(client.send("PUT", "/api/v1/pods", &[JSON], "{}").await.code, 405);
    assert_eq!(client.send("BREW", MAPS, &[], "").await.code, 405);
    cluster.shutdown().await;
}

#[tokio::test]
async fn content_types_that_nobody_speaks_are_refused() {
    let (cluster, client) = start(Options::default()).await;
    client.post(MAPS, &map("a", "1")).await;
    let said = "the body of the request was in an unknown format - accepted media types include: application/json, \
        application/yaml, application/vnd.kubernetes.protobuf";
    for (method, path, media, said) in [
        ("POST", MAPS.to_owned(), "text/plain", said),
        ("PUT", format!("{MAPS}/a"), "image/png", said),
        ("PATCH", format!("{MAPS}/a"), "application/json", "415: Unsupported Media Type"),
    ] {
        let answer = client.send(method, &path, &[("content-type", media)], "{}").await;
        assert_eq!((answer.code, answer.json()["reason"].as_str()), (415, Some("UnsupportedMediaType")));
        assert_eq!(answer.message(), said);
    }
    assert_eq!(client.send("GET", MAPS, &[("accept", "image/png")], "").await.code, 406);
    cluster.shutdown().await;
}

#[tokio::test]
async fn parameters_that_make_no_sense_are_told() {
    let (cluster, client) = start(Options::default()).await;
    for (query, code, says) in [
        (
            "labelSelector=a%20b%20c",
            400,
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
        ),
        ("labelSelector=a%20in%20(", 400, "unable to parse requirement"),
        ("labelSelector=%ff%fe", 400, "unable to parse requirement"),
        (
            "fieldSelector=data.k%3Dv",
            400,
            "\"data.k\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        ),
        ("fieldSelector=nonsense", 400, "invalid selector: 'nonsense'; can't understand 'nonsense'"),
        ("resourceVersion=abc", 400, "strconv.ParseUint: parsing \"abc\": invalid syntax"),
        ("resourceVersion=-1", 400, "strconv.ParseUint: parsing \"-1\": invalid syntax"),
        ("resourceVersion=99999999999999999999", 400, "value out of range"),
        ("resourceVersion=99999999", 504, "Timeout: Too large resource version: 99999999, current: "),
        ("limit=many", 400, "strconv.ParseInt: parsing \"many\": invalid syntax"),
        ("continue=garbage", 400, "invalid continue token: continue key is not valid"),
        ("continue=e30", 400, "does not recognize this encoded version"),
        ("resourceVersion=1&resourceVersionMatch=Bogus", 422, "resourceVersionMatch"),
        ("watch=1&resourceVersion=x", 500, "resourceVersion: Invalid value: \"x\""),
        ("watch=1&timeoutSeconds=soon", 400, "strconv.ParseInt"),
    ] {
        let answer = client.get(&format!("{MAPS}?{query}")).await;
        assert_eq!(answer.code, code, "{query}: {}", answer.text());
        assert!(answer.message().contains(says), "{query}: {}", answer.message());
    }
    let pods = client.get("/api/v1/pods?fieldSelector=spec.nope%3Dx").await;
    assert_eq!((pods.code, pods.message().as_str()), (400, "field label not supported: spec.nope"));
    assert_eq!(client.get(&format!("{MAPS}/kube-root-ca.crt?resourceVersion=99999999")).await.code, 504);
    assert_eq!(client.get(&format!("{MAPS}?limit=-5")).await.code, 200);
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_page_of_a_forgotten_past_is_expired_and_says_how_to_go_on() {
    let cluster =
        DevCluster::start(Options { controllers: false, faults: Some(1), ..Options::default() }).await.unwrap();
    let client = Client::new(&cluster.admin_kubeconfig().unwrap());
    for name in ["a", "b", "c"] {
        client.post(MAPS, &map(name, "1")).await;
    }
    let page = client.get(&format!("{MAPS}?limit=1")).await.json();
    let token = page["metadata"]["continue"].as_str().unwrap();
    client.post(MAPS, &map("d", "1")).await;
    client.post("/debug/faults/compact", &json!({"resource": "configmaps"})).await;
    let expired = client.get(&format!("{MAPS}?limit=1&continue={token}")).await;
    assert_eq!((expired.code, expired.json()["reason"].as_str()), (410, Some("Expired")));
    assert!(expired.message().starts_with("The provided continue parameter is too old to display a consistent list"));
    let go_on = expired.json()["metadata"]["continue"].as_str().unwrap().to_owned();
    let rest = client.get(&format!("{MAPS}?continue={go_on}")).await.json();
    let names: Vec<_> = rest["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].clone()).collect();
    assert_eq!(names, ["b", "c", "d"]);
    let exact = client.get(&format!("{MAPS}?resourceVersion=2&resourceVersionMatch=Exact")).await;
    assert_eq!((exact.code, exact.message().as_str()), (410, "The resourceVersion for the provided list is too old."));
    cluster.shutdown().await;
}

#[tokio::test]
async fn patches_that_grow_without_bound_are_refused() {
    let (cluster, client) = start(Options::default()).await;
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    assert_eq!(client.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &crd).await.code, 201);
    let things = "/apis/example.com/v1/namespaces/default/things";
    let thing = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "a": {"x": "y"}});
    let made = timeout(DEADLINE, async {
        while client.post(things, &thing).await.code != 201 {
            tokio::task::yield_now().await;
        }
    });
    made.await.expect("the kind is served");
    let one = format!("{things}/t");
    let copies = |path: &dyn Fn(usize) -> String| -> String {
        let copy = |n: usize| json!({"op": "copy", "from": "", "path": path(n)});
        json!((0..200).map(copy).collect::<Vec<_>>()).to_string()
    };
    let many = json!(vec![json!({"op": "test", "path": "/a/x", "value": "y"}); 10_001]).to_string();
    let deep_value = format!("{}1{}", "{\"a\":".repeat(110), "}".repeat(110));
    let far = format!("[{{\"op\":\"add\",\"path\":\"/a/deep\",\"value\":{deep_value}}}]");
    let nested = format!("{{\"spec\":{deep_value}}}");
    for (what, media, patch, code) in [
        ("copies of copies", "application/json-patch+json", copies(&|n| format!("/c{n}")), 422),
        ("copies in copies", "application/json-patch+json", copies(&|n| "/a".repeat(n + 1)), 422),
        ("too many operations", "application/json-patch+json", many, 413),
        ("a deep value", "application/json-patch+json", far, 422),
        ("a deep merge", "application/merge-patch+json", nested.clone(), 400),
        ("a deep apply", "application/apply-patch+yaml", nested, 400),
    ] {
        let answer = client.patch(&format!("{one}?fieldManager=me"), media, patch).await;
        assert_eq!(answer.code, code, "{what}: {}", answer.text());
    }
    // One level at a time gets no further either: what is stored can always be read.
    let mut deepest = 0;
    for n in 0..150 {
        let patch = json!([{"op": "add", "path": "/d".repeat(n + 1), "value": {}}]).to_string();
        match client.patch(&one, "application/json-patch+json", patch).await.code {
            200 => deepest = n,
            422 => break,
            other => panic!("{other} at {n}"),
        }
    }
    assert!((90..100).contains(&deepest), "{deepest}");
    assert_eq!(client.get(&one).await.json()["a"]["x"], "y");
    works(&client).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn rules_of_a_crd_that_nest_without_end_are_refused() {
    let (cluster, client) = start(Options::default()).await;
    let rules = [
        format!("{}true{}", "(".repeat(50_000), ")".repeat(50_000)),
        format!("{}true", "!".repeat(50_000)),
        format!("{}1{} == 1", "[".repeat(20_000), "]".repeat(20_000)),
        vec!["true"; 50_000].join(" ? "),
        vec!["self"; 50_000].join("."),
    ];
    for (n, rule) in rules.into_iter().enumerate() {
        let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("r{n}s.example.com")}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": format!("r{n}s"), "kind": format!("R{n}")}, "versions": [{"name": "v1", "served": true,
            "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
                "x-kubernetes-validations": [{"rule": rule}]}}}]}});
        let answer = client.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &crd).await;
        assert_eq!(answer.code, 422, "rule {n}: {:.300}", answer.text());
        assert!(answer.text().len() < 500_000);
    }
    works(&client).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_slow_watcher_is_cut_off_and_others_go_on() {
    let (cluster, client) = start(Options::default()).await;
    client.post(MAPS, &map("big", "0")).await;
    let watch = format!(
        "{MAPS}?watch=1&resourceVersion={}",
        client.get(MAPS).await.json()["metadata"]["resourceVersion"].as_str().unwrap()
    );
    let request = || http::Request::builder().uri(&watch).header("host", "cluster").body(Full::default()).unwrap();
    let mut slow = client.open().await.unwrap();
    let mut stuck = slow.send_request(request()).await.unwrap().into_body();
    let mut fast = client.open().await.unwrap();
    let mut flowing = fast.send_request(request()).await.unwrap().into_body();
    let reader = tokio::spawn(async move {
        let (mut length, mut lines) = (0, 0);
        while lines < 100 {
            let frame = flowing.frame().await.expect("it goes on").unwrap();
            let data = frame.into_data().unwrap();
            length += data.len();
            lines += data.iter().filter(|byte| **byte == b'\n').count();
        }
        length
    });
    for n in 0..100 {
        let patch = json!({"data": {"k": format!("{n}{}", "x".repeat(900 << 10))}}).to_string();
        assert_eq!(client.patch(&format!("{MAPS}/big"), "application/merge-patch+json", patch).await.code, 200);
    }
    assert!(timeout(DEADLINE, reader).await.expect("in time").unwrap() > 100 * (900 << 10));
    // The stuck one gets what was on its way, and then the end instead of the rest.
    let mut lines = 0;
    timeout(DEADLINE, async {
        while let Some(Ok(frame)) = stuck.frame().await {
            lines += frame.into_data().map_or(0, |data| data.iter().filter(|byte| **byte == b'\n').count());
        }
    })
    .await
    .expect("it ends");
    assert!(lines < 100, "{lines}");
    works(&client).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn idle_connections_and_vanishing_clients_hurt_nobody() {
    let (cluster, client) = start(Options::default()).await;
    let mut idle = Vec::new();
    for _ in 0..500 {
        idle.push(client.connect().await.unwrap());
    }
    for n in 0..100 {
        let mut stream = client.connect().await.unwrap();
        let head = format!(
            "POST {MAPS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'{'; n * 100]).await.unwrap();
        if n % 2 == 0 {
            let _ = stream.shutdown().await;
        }
    }
    works(&client).await;
    let mut last = idle.pop().unwrap();
    last.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut said = String::new();
    timeout(DEADLINE, last.read_to_string(&mut said)).await.unwrap().unwrap();
    assert!(said.ends_with("ok"), "{said}");
    drop(idle);
    cluster.shutdown().await;
}

#[tokio::test]
async fn floods_of_headers_and_broken_requests_are_answered_or_cut() {
    let (cluster, client) = start(Options::default()).await;
    let flood: String = (0..5000).map(|n| format!("x-{n}: y\r\n")).collect();
    let long = format!("x-long: {}\r\n", "y".repeat(2 << 20));
    for (what, request) in [
        ("many headers", format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{flood}\r\n")),
        ("a long header", format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{long}\r\n")),
        ("a long path", format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(1 << 20))),
        ("no request", "\0\0\0\0\r\n\r\n".to_owned()),
        (
            "two lengths",
            format!("POST {MAPS} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{{}}"),
        ),
        ("a bad chunk", format!("POST {MAPS} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{{}}\r\n")),
    ] {
        let mut stream = client.connect().await.unwrap();
        // The server may stop reading before all is written.
        let _ = timeout(DEADLINE, stream.write_all(request.as_bytes())).await.expect(what);
        let mut said = Vec::new();
        let _ = timeout(DEADLINE, stream.read_to_end(&mut said)).await.expect(what);
        let said = String::from_utf8_lossy(&said);
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{what}: {said:.200}");
    }
    let huge = vec![("x-a", "y"); 90];
    assert_eq!(client.send("GET", "/healthz", &huge, "").await.code, 200);
    // No TLS at all.
    let mut plain = tokio::net::TcpStream::connect(client.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = timeout(Duration::from_secs(15), plain.read_to_end(&mut said)).await.expect("it is cut");
    works(&client).await;
    cluster.shutdown().await;
}
