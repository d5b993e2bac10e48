//! Small, forgiving views of Redfish JSON. BMCs send null for lists, objects for lists, numbers as
//! text and whole fields missing; only what an operation needs has to be there.

use serde_json::Value;

/// Text at a `/`-separated place, trimmed; none when absent, empty or not text.
pub(crate) fn text<'a>(json: &'a Value, pointer: &str) -> Option<&'a str> {
    let found = json.pointer(pointer)?.as_str()?.trim();
    (!found.is_empty()).then_some(found)
}

/// The link of a resource.
pub(crate) fn link(json: &Value, pointer: &str) -> Option<String> {
    text(json.pointer(pointer)?, "/@odata.id").map(str::to_owned)
}

/// A list of texts; empty when absent or null.
pub(crate) fn texts(json: &Value, pointer: &str) -> Vec<String> {
    let items = json.pointer(pointer).and_then(Value::as_array);
    items
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// Links of a collection's members; `Members` may be null.
pub(crate) fn members(json: &Value) -> Vec<String> {
    let items = json.pointer("/Members").and_then(Value::as_array);
    items
        .into_iter()
        .flatten()
        .filter_map(|member| text(member, "/@odata.id"))
        .map(str::to_owned)
        .collect()
}

/// The resource that takes settings for later, if this one has any.
pub(crate) fn settings(json: &Value) -> Option<String> {
    link(json, "/@Redfish.Settings/SettingsObject")
}

/// The reset action of a system: its target and the types that it lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reset {
    pub target: String,
    pub allowed: Vec<String>,
    pub info: Option<String>,
}

impl Reset {
    pub(crate) fn of(system: &Value) -> Option<Self> {
        let action = system.pointer("/Actions/#ComputerSystem.Reset")?;
        Some(Self {
            target: text(action, "/target")?.to_owned(),
            allowed: texts(action, "/ResetType@Redfish.AllowableValues"),
            info: text(action, "/@Redfish.ActionInfo").map(str::to_owned),
        })
    }
}

/// Reset types listed by an ActionInfo resource.
pub(crate) fn action_info_reset_types(info: &Value) -> Vec<String> {
    let parameters = info.pointer("/Parameters").and_then(Value::as_array);
    parameters
        .into_iter()
        .flatten()
        .find(|parameter| text(parameter, "/Name") == Some("ResetType"))
        .map(|parameter| texts(parameter, "/AllowableValues"))
        .unwrap_or_default()
}

/// What an error body says: ids for decisions, one line for people.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub ids: Vec<String>,
    pub line: String,
}

const LONGEST_COMPLAINT: usize = 300;

impl Complaint {
    pub(crate) fn of(body: &Value) -> Self {
        let error = body.get("error").unwrap_or(body);
        let extended = error.get("@Message.ExtendedInfo");
        let infos: Vec<&Value> = match extended {
            Some(Value::Array(items)) => items.iter().collect(),
            Some(single @ Value::Object(_)) => vec![single],
            _ => Vec::new(),
        };
        let mut ids: Vec<String> = Vec::new();
        let mut lines: Vec<&str> = Vec::new();
        for info in infos {
            ids.extend(text(info, "/MessageId").map(str::to_owned));
            lines.extend(text(info, "/Message"));
        }
        if lines.is_empty() {
            lines.extend(text(error, "/message"));
        }
        ids.extend(text(error, "/code").map(str::to_owned));
        if lines.is_empty() {
            lines.extend(ids.iter().map(String::as_str));
        }
        Self {
            line: one_line(&lines.join("; ")),
            ids,
        }
    }

    /// Whether an id ends in this name, with or without a registry in front.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.ids
            .iter()
            .any(|id| id.rsplit('.').next() == Some(name))
    }
}

/// Printable and short: what a BMC sends goes into logs and events.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST_COMPLAINT)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_error_bodies_of_every_shape() {
        let list = json!({"error": {"code": "Base.1.8.GeneralError", "message": "see info",
            "@Message.ExtendedInfo": [{"MessageId": "IDRAC.2.8.SYS518", "Message": "not\nyet"}]}});
        let complaint = Complaint::of(&list);
        assert_eq!(complaint.line, "not yet");
        assert!(complaint.has("SYS518"));
        let single =
            json!({"error": {"@Message.ExtendedInfo": {"MessageId": "PasswordChangeRequired"}}});
        assert!(Complaint::of(&single).has("PasswordChangeRequired"));
        assert_eq!(Complaint::of(&single).line, "PasswordChangeRequired");
        assert_eq!(Complaint::of(&Value::Null), Complaint::default());
        assert_eq!(Complaint::of(&json!("<html>")), Complaint::default());
    }

    #[test]
    fn null_members_are_no_members() {
        assert!(members(&json!({"Members": null})).is_empty());
        assert_eq!(
            members(&json!({"Members": [{"@odata.id": "/a"}, {}]})),
            ["/a"]
        );
    }

    #[test]
    fn reads_reset_types_from_action_info() {
        let info = json!({"Parameters": [{"Name": "Other"},
            {"Name": "ResetType", "AllowableValues": ["On", "ForceOff"]}]});
        assert_eq!(action_info_reset_types(&info), ["On", "ForceOff"]);
    }
}
