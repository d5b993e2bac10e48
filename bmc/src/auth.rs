//! Credentials, and what a client has to show for them.

use std::fmt;

use base64::Engine as _;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// A user name and a password; the password is wiped on drop and not printable.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    username: String,
    password: Zeroizing<String>,
}

impl Credentials {
    /// Takes the password over.
    #[must_use]
    pub fn new(username: impl Into<String>, password: impl Into<Zeroizing<String>>) -> Self {
        Self {
            username: username.into(),
            password: password.into(),
        }
    }

    /// Body of the request that opens a session.
    pub(crate) fn session_body(&self) -> serde_json::Value {
        serde_json::json!({"UserName": self.username, "Password": self.password.as_str()})
    }

    fn basic(&self) -> Result<HeaderValue> {
        let plain = Zeroizing::new(format!("{}:{}", self.username, self.password.as_str()));
        let coded = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(&*plain));
        secret_header(&format!("Basic {}", coded.as_str()))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// How requests are authorised now.
#[derive(Default)]
pub(crate) enum Login {
    /// Not logged in yet, or no longer.
    #[default]
    None,
    /// A session of ours.
    Session {
        token: Zeroizing<String>,
        /// Where to delete it; some BMCs do not say.
        location: Option<String>,
    },
    /// This BMC has no sessions: the password goes with each request.
    Basic,
}

impl Login {
    pub(crate) fn headers(&self, credentials: &Credentials) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        match self {
            Self::None => {}
            Self::Session { token, .. } => {
                headers.insert(X_AUTH_TOKEN, secret_header(token)?);
            }
            Self::Basic => {
                headers.insert(AUTHORIZATION, credentials.basic()?);
            }
        }
        Ok(headers)
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Session { .. } => "Session",
            Self::Basic => "Basic",
        })
    }
}

/// Header that carries a session's token (DSP0266, 13.3.4).
pub(crate) const X_AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");

fn secret_header(text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        Error::Unsupported("the BMC's session token is not a header value".to_owned())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let credentials = Credentials::new("root", "hunter2".to_owned());
        assert!(!format!("{credentials:?}").contains("hunter2"));
        let login = Login::Session {
            token: "t0ken".to_owned().into(),
            location: None,
        };
        assert!(!format!("{login:?}").contains("t0ken"));
        let headers = Login::Basic.headers(&credentials).unwrap();
        assert_eq!(headers[AUTHORIZATION], "Basic cm9vdDpodW50ZXIy");
        assert!(!format!("{headers:?}").contains("cm9vdD"));
    }
}
