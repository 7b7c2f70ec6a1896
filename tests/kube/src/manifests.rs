//! The manifests that are shipped, `deploy/manifests/NAME.yaml`, for tests with their rights.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde_json::{Value, json};

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/manifests")
}

/// The names of all of them.
///
/// # Errors
/// If their directory cannot be read.
pub fn names() -> anyhow::Result<Vec<String>> {
    let dir = directory();
    let files =
        std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut names = Vec::new();
    for file in files {
        let name = file?.file_name();
        names.extend(name.to_string_lossy().strip_suffix(".yaml").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// The objects of one.
///
/// # Errors
/// If it cannot be read.
pub fn objects(name: &str) -> anyhow::Result<Vec<Value>> {
    yaml(&directory().join(format!("{name}.yaml")))
}

/// The objects in a file of YAML.
///
/// # Errors
/// If it cannot be read.
pub fn yaml(file: &std::path::Path) -> anyhow::Result<Vec<Value>> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
    let all: Vec<Value> = serde_saphyr::from_multiple(&text)
        .map_err(|error| anyhow::anyhow!("cannot read {shown}: {error}"))?;
    Ok(all.into_iter().filter(|object| !object.is_null()).collect())
}

/// The roles of one part, such as `rds-csi-controller`, and their bindings: in this namespace, to
/// this subject instead of the part's service account, and for a driver of any name.
///
/// # Errors
/// If the manifests cannot be read, or have no such roles.
pub fn roles(
    part: &str,
    namespace: &str,
    subject: &Value,
    driver: &str,
) -> anyhow::Result<Vec<Value>> {
    let mut found = Vec::new();
    for mut object in objects("minimal")? {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        if !is_of(&object, part) {
            continue;
        }
        if object["metadata"].get("namespace").is_some() {
            object["metadata"]["namespace"] = namespace.into();
        }
        // Drivers beside each other have a Lease each.
        let own = format!("{part}-{driver}");
        object["metadata"]["name"] = own.as_str().into();
        if kind.ends_with("Binding") {
            object["roleRef"]["name"] = own.into();
            object["subjects"] = json!([subject]);
        }
        for rule in object["rules"].as_array_mut().into_iter().flatten() {
            if rule.get("resourceNames").is_some() {
                rule["resourceNames"] = json!([driver]);
            }
        }
        found.push(object);
    }
    if found.is_empty() {
        bail!("deploy/manifests has no roles for {part}");
    }
    Ok(found)
}

/// What these roles allow: `VERB RESOURCE.GROUP`.
///
/// # Errors
/// If the manifests cannot be read.
pub fn granted(part: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut rights = BTreeSet::new();
    let texts = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    for object in objects("minimal")?.iter().filter(|object| is_of(object, part)) {
        for rule in object["rules"].as_array().into_iter().flatten() {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    let group = Some(group.as_str()).filter(|group| !group.is_empty());
                    let verbs = texts(&rule["verbs"]);
                    rights.extend(verbs.iter().map(|verb| right(verb, &resource, group)));
                }
            }
        }
    }
    Ok(rights)
}

pub(crate) fn right(verb: &str, resource: &str, group: Option<&str>) -> String {
    match group {
        Some(group) => format!("{verb} {resource}.{group}"),
        None => format!("{verb} {resource}"),
    }
}

fn is_of(object: &Value, part: &str) -> bool {
    object["apiVersion"] == "rbac.authorization.k8s.io/v1" && object["metadata"]["name"] == part
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_manifests_can_be_read() {
        assert!(names().unwrap().len() >= 5);
        for name in names().unwrap() {
            assert!(objects(&name).unwrap().len() > 10, "{name}");
        }
        assert!(granted("rds-csi-shim").unwrap().contains("get csinodes.storage.k8s.io"));
        let roles = roles("rds-csi-controller", "default", &json!({}), "x.example").unwrap();
        assert_eq!(roles.len(), 4);
        assert!(!format!("{roles:?}").contains("srvlab.io"));
    }
}
