//! Printers of volumes, their claims and classes, and the drivers behind them.

use jiff::Timestamp;
use serde_json::Value;

use super::builtin::{AGE, age, array, text};
use super::{Column, col, wide};

pub(super) const STORAGE_CLASS: &[Column] = &[
    col("Provisioner", "string", "provisioner indicates the type of the provisioner."),
    col("ReclaimPolicy", "string", "reclaimPolicy of the PersistentVolumes that this class creates."),
    col("VolumeBindingMode", "string", "volumeBindingMode indicates when volumes are provisioned and bound."),
    col("AllowVolumeExpansion", "string", "allowVolumeExpansion shows whether volumes may be expanded."),
    AGE,
];

pub(super) fn storage_class(class: &Value, now: Timestamp) -> Vec<Value> {
    let or = |pointer: &str, default: &str| match text(class, pointer) {
        "" => default.to_string(),
        said => said.to_string(),
    };
    vec![
        text(class, "/provisioner").into(),
        or("/reclaimPolicy", "Delete").into(),
        or("/volumeBindingMode", "Immediate").into(),
        class.get("allowVolumeExpansion").and_then(Value::as_bool).unwrap_or(false).into(),
        age(class, now),
    ]
}

pub(super) const PV: &[Column] = &[
    col("Capacity", "string", "capacity is the description of the persistent volume's resources."),
    col("Access Modes", "string", "accessModes contains all ways the volume can be mounted."),
    col("Reclaim Policy", "string", "What happens to the volume when released from its claim."),
    col("Status", "string", "phase indicates if a volume is available, bound to a claim, or released by a claim."),
    col("Claim", "string", "claimRef is part of a bi-directional binding between volume and claim."),
    col("StorageClass", "string", "Name of the class to which this volume belongs."),
    col("VolumeAttributesClass", "string", "Name of the VolumeAttributesClass to which this volume belongs."),
    col("Reason", "string", "A brief string that describes any failure."),
    AGE,
    wide("VolumeMode", "string", "Whether a volume has a file system or is a raw block."),
];

fn modes(object: &Value, pointer: &str) -> String {
    let short = |m: &Value| match m.as_str().unwrap_or_default() {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    array(object, pointer).iter().map(short).collect::<Vec<_>>().join(",")
}

fn terminating<'a>(object: &'a Value, phase: &'a str) -> &'a str {
    if object.pointer("/metadata/deletionTimestamp").is_some() { "Terminating" } else { phase }
}

pub(super) fn persistent_volume(pv: &Value, now: Timestamp) -> Vec<Value> {
    let claim = match pv.pointer("/spec/claimRef") {
        Some(claim) => format!("{}/{}", text(claim, "/namespace"), text(claim, "/name")),
        None => String::new(),
    };
    vec![
        text(pv, "/spec/capacity/storage").into(),
        modes(pv, "/spec/accessModes").into(),
        text(pv, "/spec/persistentVolumeReclaimPolicy").into(),
        terminating(pv, text(pv, "/status/phase")).into(),
        claim.into(),
        text(pv, "/spec/storageClassName").into(),
        unset(text(pv, "/spec/volumeAttributesClassName")).into(),
        text(pv, "/status/reason").into(),
        age(pv, now),
        unset(text(pv, "/spec/volumeMode")).into(),
    ]
}

fn unset(text: &str) -> &str {
    if text.is_empty() { "<unset>" } else { text }
}

pub(super) const PVC: &[Column] = &[
    col("Status", "string", "phase represents the current phase of PersistentVolumeClaim."),
    col("Volume", "string", "volumeName is the binding reference to the PersistentVolume backing this claim."),
    col("Capacity", "string", "capacity represents the actual resources of the underlying volume."),
    col("Access Modes", "string", "accessModes contains the desired access modes the volume should have."),
    col("StorageClass", "string", "storageClassName is the name of the StorageClass required by the claim."),
    col("VolumeAttributesClass", "string", "The VolumeAttributesClass used by this claim."),
    AGE,
    wide("VolumeMode", "string", "What type of volume is required by the claim."),
];

pub(super) fn persistent_volume_claim(pvc: &Value, now: Timestamp) -> Vec<Value> {
    let bound = !text(pvc, "/spec/volumeName").is_empty();
    let (capacity, access) = match bound {
        true => (text(pvc, "/status/capacity/storage"), modes(pvc, "/status/accessModes")),
        false => ("", String::new()),
    };
    vec![
        terminating(pvc, text(pvc, "/status/phase")).into(),
        text(pvc, "/spec/volumeName").into(),
        capacity.into(),
        access.into(),
        text(pvc, "/spec/storageClassName").into(),
        unset(text(pvc, "/spec/volumeAttributesClassName")).into(),
        age(pvc, now),
        unset(text(pvc, "/spec/volumeMode")).into(),
    ]
}

pub(super) const CSI_DRIVER: &[Column] = &[
    col("AttachRequired", "boolean", ""),
    col("PodInfoOnMount", "boolean", ""),
    col("StorageCapacity", "boolean", ""),
    col("TokenRequests", "string", ""),
    col("RequiresRepublish", "boolean", ""),
    col("Modes", "string", ""),
    AGE,
];

pub(super) fn csi_driver(driver: &Value, now: Timestamp) -> Vec<Value> {
    let on = |field: &str, otherwise: bool| {
        Value::from(driver.pointer(&format!("/spec/{field}")).and_then(Value::as_bool).unwrap_or(otherwise))
    };
    let audiences: Vec<&str> =
        array(driver, "/spec/tokenRequests").iter().map(|request| text(request, "/audience")).collect();
    let tokens = if audiences.is_empty() { "<unset>".to_owned() } else { audiences.join(",") };
    let modes: Vec<&str> = array(driver, "/spec/volumeLifecycleModes").iter().filter_map(Value::as_str).collect();
    let modes = if modes.is_empty() { "<none>".to_owned() } else { modes.join(",") };
    vec![
        on("attachRequired", true),
        on("podInfoOnMount", false),
        on("storageCapacity", false),
        tokens.into(),
        on("requiresRepublish", false),
        modes.into(),
        age(driver, now),
    ]
}

pub(super) const CSI_NODE: &[Column] =
    &[col("Drivers", "integer", "Drivers indicates the number of CSI drivers registered on the node"), AGE];

pub(super) fn csi_node(node: &Value, now: Timestamp) -> Vec<Value> {
    vec![array(node, "/spec/drivers").len().into(), age(node, now)]
}

pub(super) const VOLUME_ATTACHMENT: &[Column] = &[
    col("Attacher", "string", ""),
    col("PV", "string", ""),
    col("Node", "string", ""),
    col("Attached", "boolean", ""),
    AGE,
];

pub(super) fn volume_attachment(attachment: &Value, now: Timestamp) -> Vec<Value> {
    let attached = attachment.pointer("/status/attached").and_then(Value::as_bool).unwrap_or(false);
    vec![
        text(attachment, "/spec/attacher").into(),
        text(attachment, "/spec/source/persistentVolumeName").into(),
        text(attachment, "/spec/nodeName").into(),
        attached.into(),
        age(attachment, now),
    ]
}
