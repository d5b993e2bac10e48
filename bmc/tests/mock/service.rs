//! What the mock answers.

use serde_json::{Value, json};

use super::wire::Incoming;
use super::{Fault, Options, PASSWORD, Tags, What};

const BASIC: &str = "Basic cm9vdDpjb3JyZWN0IGhvcnNl"; // root:correct horse

/// The BMC, and what happened to it.
pub struct State {
    pub options: Options,
    pub power: String,
    pub boot: Value,
    pub sessions: Vec<String>,
    pub faults: Vec<Fault>,
    pub requests: Vec<(String, String)>,
    pub resets: Vec<String>,
    pub basic_logins: u32,
    /// Power state to come, and looks until then.
    coming: Option<(String, u32)>,
    next_session: u32,
    version: u32,
    patches: u32,
}

/// An answer, ready to be written.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Answer {
    fn json(status: u16, body: &Value) -> Self {
        let body = body.to_string();
        Self {
            status,
            headers: Vec::new(),
            body,
        }
    }

    fn empty() -> Self {
        Self {
            status: 204,
            headers: Vec::new(),
            body: String::new(),
        }
    }

    fn error(status: u16, message: &str) -> Self {
        let info = json!([{"MessageId": "Base.1.8.GeneralError", "Message": message}]);
        Self::json(
            status,
            &json!({"error": {"code": "Base.1.8.GeneralError",
            "message": message, "@Message.ExtendedInfo": info}}),
        )
    }

    fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((key, value.into()));
        self
    }
}

impl State {
    pub fn new(options: Options) -> Self {
        Self {
            power: options.power.to_owned(),
            boot: options.boot.clone(),
            sessions: Vec::new(),
            faults: Vec::new(),
            requests: Vec::new(),
            resets: Vec::new(),
            basic_logins: 0,
            coming: None,
            next_session: 1,
            version: 1,
            patches: 0,
            options,
        }
    }

    /// The answer, and the fault that happens to it on the wire.
    pub fn handle(&mut self, request: &Incoming) -> (Option<What>, Answer) {
        let (method, path) = (request.method.clone(), request.path.clone());
        self.requests.push((method, path));
        match self.next_fault(request) {
            None => (None, self.answer(request)),
            Some(What::Status(status, message)) => {
                let answer = Answer::error(status, message);
                let again = status == 429;
                (
                    None,
                    if again {
                        answer.with("Retry-After", "0")
                    } else {
                        answer
                    },
                )
            }
            Some(What::Garbage) => {
                let body = "{\"PowerState\": \"O".to_owned();
                (
                    None,
                    Answer {
                        status: 200,
                        headers: Vec::new(),
                        body,
                    },
                )
            }
            Some(What::DoneButConflict) => {
                self.answer(request);
                (None, Answer::error(409, "already in that state"))
            }
            Some(what) => (
                Some(what),
                Answer::json(200, &json!({"cut": "in the middle"})),
            ),
        }
    }

    fn next_fault(&mut self, request: &Incoming) -> Option<What> {
        let fault = self.faults.iter_mut().find(|fault| {
            fault.times > 0 && fault.method == request.method && request.path.ends_with(fault.path)
        })?;
        fault.times = fault.times.saturating_sub(1);
        Some(fault.what)
    }

    fn answer(&mut self, request: &Incoming) -> Answer {
        for (key, want) in [("odata-version", "4.0"), ("accept-encoding", "identity")] {
            assert_eq!(
                request.header(key),
                Some(want),
                "{} {}",
                request.method,
                request.path
            );
        }
        let path = request.path.trim_end_matches('/');
        match (request.method.as_str(), path) {
            ("GET", "/redfish/v1") => Answer::json(200, &self.root()),
            ("POST", "/redfish/v1/SessionService/Sessions") => self.open_session(request),
            _ if !self.allowed(request) => Answer::error(401, "log in first"),
            ("DELETE", session) if session.starts_with("/redfish/v1/SessionService/Sessions/") => {
                let token = session.rsplit('/').next().map(|id| format!("token-{id}"));
                self.sessions.retain(|open| Some(open) != token.as_ref());
                Answer::empty()
            }
            ("GET", "/redfish/v1/Systems") => Answer::json(200, &self.collection()),
            ("GET", "/redfish/v1/ResetInfo") => Answer::json(
                200,
                &json!({"Parameters": [{"Name": "ResetType",
                    "AllowableValues": self.options.reset_types}]}),
            ),
            (method, path) => self.system(method, path, request),
        }
    }

    fn root(&self) -> Value {
        let mut root = json!({"RedfishVersion": "1.11.0",
            "Systems": {"@odata.id": "/redfish/v1/Systems"}});
        if self.options.no_sessions.is_none() {
            root["Links"] =
                json!({"Sessions": {"@odata.id": "/redfish/v1/SessionService/Sessions"}});
        }
        root
    }

    fn open_session(&mut self, request: &Incoming) -> Answer {
        if let Some(status) = self.options.no_sessions {
            return Answer::error(status, "no sessions here");
        }
        assert_eq!(request.header("authorization"), None);
        assert_eq!(request.header("x-auth-token"), None);
        if request.body != json!({"UserName": "root", "Password": PASSWORD}) {
            // Some BMCs repeat the value that they did not like.
            return Answer::error(401, &format!("bad value {}", request.body["Password"]));
        }
        let id = self.next_session;
        self.next_session += 1;
        self.sessions.push(format!("token-{id}"));
        Answer::json(201, &json!({}))
            .with("X-Auth-Token", format!("token-{id}"))
            .with(
                "Location",
                format!("/redfish/v1/SessionService/Sessions/{id}"),
            )
    }

    fn allowed(&mut self, request: &Incoming) -> bool {
        if request.header("authorization") == Some(BASIC) && self.options.no_sessions.is_some() {
            self.basic_logins += 1;
            return true;
        }
        let token = request.header("x-auth-token");
        token.is_some_and(|token| self.sessions.iter().any(|open| open == token))
    }

    fn collection(&self) -> Value {
        let link = |id: &&str| json!({"@odata.id": format!("/redfish/v1/Systems/{id}")});
        json!({"Members": self.options.systems.iter().map(link).collect::<Vec<_>>()})
    }

    fn system(&mut self, method: &str, path: &str, request: &Incoming) -> Answer {
        let rest = path
            .strip_prefix("/redfish/v1/Systems/")
            .unwrap_or_default();
        let (id, below) = rest.split_once('/').unwrap_or((rest, ""));
        if !self.options.systems.contains(&id) {
            return Answer::error(404, "no such resource");
        }
        if let Some(target) = self.options.redirects_system_to.clone() {
            return Answer::json(307, &Value::Null).with("Location", target);
        }
        match (method, below) {
            ("GET", "") => {
                self.look();
                let body = self.resource(id);
                match self.tag() {
                    Some(tag) => Answer::json(200, &body).with("ETag", tag),
                    None => Answer::json(200, &body),
                }
            }
            ("PATCH", "") => self.patch(request),
            ("POST", "Actions/ComputerSystem.Reset") => self.reset(request),
            _ => Answer::error(405, "not allowed"),
        }
    }

    fn resource(&self, id: &str) -> Value {
        let target = format!("/redfish/v1/Systems/{id}/Actions/ComputerSystem.Reset");
        let action = if self.options.in_action_info {
            json!({"target": target, "@Redfish.ActionInfo": "/redfish/v1/ResetInfo"})
        } else {
            json!({"target": target, "ResetType@Redfish.AllowableValues": self.options.reset_types})
        };
        json!({"@odata.id": format!("/redfish/v1/Systems/{id}"), "Id": id,
            "PowerState": self.power, "Boot": self.boot,
            "Actions": {"#ComputerSystem.Reset": action}})
    }

    /// Time passes by being looked at.
    fn look(&mut self) {
        match &mut self.coming {
            Some((_, looks)) if *looks > 0 => *looks -= 1,
            Some((state, _)) => {
                self.power = state.clone();
                self.coming = None;
            }
            None => {}
        }
    }

    fn reset(&mut self, request: &Incoming) -> Answer {
        let kind = request.body["ResetType"].as_str().unwrap_or_default();
        if !self.options.reset_types.contains(&kind) {
            return Answer::error(400, "ActionParameterValueNotInList");
        }
        let state = if kind == "ForceOff" { "Off" } else { "On" };
        self.resets.push(kind.to_owned());
        if self.options.looks_to_change == 0 {
            self.power = state.to_owned();
        } else {
            self.coming = Some((state.to_owned(), self.options.looks_to_change));
        }
        Answer::empty()
    }

    fn tag(&self) -> Option<String> {
        (self.options.tags != Tags::None).then(|| format!("W/\"{}\"", self.version))
    }

    fn patch(&mut self, request: &Incoming) -> Answer {
        self.patches += 1;
        let given = request.header("if-match");
        let weak = self.tag();
        let strong = weak.as_ref().map(|tag| tag.trim_start_matches("W/"));
        let fits = match self.options.tags {
            Tags::None | Tags::NeverAccepted => given.is_none(),
            Tags::Required => given == weak.as_deref(),
            Tags::StrongOnly => given == strong,
            Tags::MoveTwice if self.patches <= 2 => {
                self.version += 1;
                false
            }
            Tags::MoveTwice => given == weak.as_deref() || given == strong,
        };
        if !fits {
            return Answer::error(412, "precondition failed");
        }
        let wanted = request.body["Boot"].as_object().unwrap();
        for (key, value) in self.options.refuses {
            let same = |given: &Value| value.is_none() || given.as_str() == *value;
            if wanted.get(*key).is_some_and(same) {
                return Answer::error(400, "PropertyValueNotInList");
            }
        }
        if !self.options.drops_boot {
            for (key, value) in wanted {
                self.boot[key] = value.clone();
            }
            if let (Some(mode), None) = (
                self.options.mode_when_left_out,
                wanted.get("BootSourceOverrideMode"),
            ) {
                self.boot["BootSourceOverrideMode"] = mode.into();
            }
        }
        self.version += 1;
        Answer::empty()
    }
}
