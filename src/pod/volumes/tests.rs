//! Pure parts of volumes; the rest is tested through the controller.

use super::*;
use serde_json::json;

#[test]
fn paths_stay_inside() {
    for (path, want) in [("a", true), ("a/b.c", true), ("..a/b", true), ("/a", false), ("a/../b", false), ("..", false)]
    {
        assert_eq!(is_inside(path), want, "{path}");
        let put = Files::default().put(path, Bytes::new(), 0o644, None, false);
        assert_eq!(put.is_ok(), want, "{path}");
    }
    assert!(Files::default().put("", Bytes::new(), 0, None, false).is_err());
}

#[test]
fn every_kind_of_volume_has_its_name() {
    for (volume, kind) in [
        (json!({"name": "v"}), "emptyDir"),
        (json!({"name": "v", "configMap": {"name": "c"}}), "configMap"),
        (json!({"name": "v", "csi": {"driver": "d"}}), "csi"),
        (json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}), "persistentVolumeClaim"),
        (json!({"name": "v", "gitRepo": {"repository": "r"}}), "gitRepo"),
    ] {
        assert_eq!(kind_of(&serde_json::from_value(volume).unwrap()), kind);
    }
}
