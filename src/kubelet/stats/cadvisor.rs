//! `/metrics/cadvisor`: those of its figures that providers know, with cAdvisor's names, labels and words.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::Measured;
use super::text::{Families, containers, labels, node, pods};
use crate::provider::{ContainerUsage, FilesystemUsage, InterfaceUsage, NetworkUsage, PodUsage};

/// The whole page.
pub(super) fn page(measured: &[Measured<'_>], shared: bool) -> String {
    let mut out = Families::default();
    let with = |m: &Measured<'_>, p: &PodUsage, c: &ContainerUsage, cpu: bool| {
        let key = (p.pod.namespace.to_string(), p.pod.name.to_string(), c.name.clone());
        let image = m.images.get(&key).map(String::as_str).unwrap_or_default();
        // There are no cgroups to tell of; the id is what dashboards join on.
        let id = format!("/kubepods/pod{}/{}", p.pod.uid, c.name);
        let mut all = vec![("container", c.name.as_str())];
        if cpu {
            all.push(("cpu", "total"));
        }
        let name = (node(m, shared), &*p.pod.namespace, &*p.pod.name);
        all.extend([("id", id.as_str()), ("image", image), ("name", ""), ("namespace", name.1)]);
        all.extend([("node", name.0), ("pod", name.2)]);
        labels(&all)
    };
    out.family("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.");
    for (m, p, c) in containers(measured) {
        out.cpu(&with(m, p, c, true), Some(&c.usage));
    }
    filesystems(&mut out, measured, shared);
    out.family("container_memory_working_set_bytes", "gauge", "Current working set in bytes.");
    for (m, p, c) in containers(measured) {
        out.memory(&with(m, p, c, false), Some(&c.usage));
    }
    networks(&mut out, measured, shared);
    let help = "Start time of the container since unix epoch in seconds.";
    out.family("container_start_time_seconds", "gauge", help);
    for (m, p, c) in containers(measured) {
        out.start(&with(m, p, c, false), c.start_time);
    }
    out.text
}

/// The machine's filesystem, which goes by the name of the outermost container.
fn filesystems(out: &mut Families, measured: &[Measured<'_>], shared: bool) {
    type Figure = fn(&FilesystemUsage) -> Option<u64>;
    let families: [(&str, &str, Figure); 4] = [
        ("container_fs_inodes_free", "Number of available Inodes", |f| f.inodes_free),
        ("container_fs_inodes_total", "Number of Inodes", |f| f.inodes),
        (
            "container_fs_limit_bytes",
            "Number of bytes that can be consumed by the container on this filesystem.",
            |f| f.capacity_bytes,
        ),
        ("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", |f| {
            f.used_bytes
        }),
    ];
    for (name, help, figure) in families {
        out.family(name, "gauge", help);
        for m in measured {
            let Some(found) = m.usage.as_ref().and_then(|u| u.filesystem) else { continue };
            let Some(value) = figure(&found) else { continue };
            let of = [("container", ""), ("device", ""), ("id", "/"), ("image", ""), ("name", ""), ("namespace", "")];
            let all = [&of[..], &[("node", node(m, shared)), ("pod", "")]].concat();
            out.sample(&labels(&all), value as f64, Some(found.time));
        }
    }
}

/// The networks of machines, and of pods with one of their own.
fn networks(out: &mut Families, measured: &[Measured<'_>], shared: bool) {
    type Figure = fn(&InterfaceUsage) -> Option<u64>;
    let families: [(&str, &str, Figure); 4] = [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received", |i| i.rx_bytes),
        ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", |i| {
            i.rx_errors
        }),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |i| i.tx_bytes),
        ("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", |i| {
            i.tx_errors
        }),
    ];
    for (name, help, figure) in families {
        out.family(name, "counter", help);
        let mut each = |network: &NetworkUsage, id: &str, namespace: &str, node: &str, pod: &str| {
            for interface in &network.interfaces {
                let Some(value) = figure(interface) else { continue };
                let labels = labels(&[
                    ("container", ""),
                    ("id", id),
                    ("image", ""),
                    ("interface", &interface.name),
                    ("name", ""),
                    ("namespace", namespace),
                    ("node", node),
                    ("pod", pod),
                ]);
                out.sample(&labels, value as f64, Some(network.time));
            }
        };
        for m in measured {
            if let Some(network) = m.usage.as_ref().and_then(|u| u.network.as_ref()) {
                each(network, "/", "", node(m, shared), "");
            }
        }
        for (m, p) in pods(measured) {
            if let Some(network) = &p.network {
                let id = format!("/kubepods/pod{}", p.pod.uid);
                each(network, &id, &p.pod.namespace, node(m, shared), &p.pod.name);
            }
        }
    }
}

/// The images of pods' containers.
pub(super) fn images(pods: &[Arc<Pod>]) -> HashMap<(String, String, String), String> {
    let mut images = HashMap::new();
    for pod in pods {
        let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
        let (Some(namespace), Some(name), Some(spec)) = (namespace, name, pod.spec.as_ref()) else { continue };
        for c in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            let key = (namespace.to_owned(), name.to_owned(), c.name.clone());
            images.insert(key, c.image.clone().unwrap_or_default());
        }
    }
    images
}

#[cfg(test)]
mod tests {
    use super::super::tests::{filesystem, measured, network, node};
    use super::*;

    #[test]
    fn cadvisors_metrics_carry_image_and_id() {
        let mut measured = measured("n", Some(node()));
        measured.images.insert(("ns".into(), "p".into(), "a".into()), "example/app:1".into());
        let text = page(&[measured], false);
        let line = r#"container_cpu_usage_seconds_total{container="a",cpu="total",id="/kubepods/podu/a",image="example/app:1",name="",namespace="ns",pod="p"} 1.5 1700000000500"#;
        assert!(text.lines().any(|l| l == line), "{text}");
        assert!(text.contains(r#"container_memory_working_set_bytes{container="b",id="/kubepods/podu/b",image="","#));
    }

    #[test]
    fn networks_and_filesystems_are_told_of_where_they_are_known() {
        let text = page(&[measured("n", Some(node()))], false);
        let line = r#"container_network_receive_bytes_total{container="",id="/kubepods/podu",image="",interface="eth0",name="",namespace="ns",pod="p"} 100 1700000000500"#;
        assert!(text.lines().any(|l| l == line), "{text}");
        assert!(text.contains("container_network_transmit_errors_total{"));
        assert!(!text.contains("receive_errors") && !text.contains("container_fs") && !text.contains(r#"id="/","#));

        let mut of_machine = node();
        (of_machine.network, of_machine.filesystem) = (Some(network("wlan0")), Some(filesystem()));
        let text = page(&[measured("n1", Some(of_machine)), measured("n2", None)], true);
        for line in [
            r#"container_network_transmit_bytes_total{container="",id="/",image="",interface="wlan0",name="",namespace="",node="n1",pod=""} 200 1700000000500"#,
            r#"container_fs_limit_bytes{container="",device="",id="/",image="",name="",namespace="",node="n1",pod=""} 1000 1700000000500"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("container_fs_inodes"), "{text}");
    }
}
