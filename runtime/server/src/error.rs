//! What is said to clients whose request cannot be answered, in the form of the OpenAI interface.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lapidary_language::Error;
use serde_json::{Value, json};

/// Seconds after which a client may try again what the server has no room for.
const RETRY: HeaderValue = HeaderValue::from_static("1");

/// A refusal.
#[derive(Clone, Debug)]
pub struct Refused {
    status: StatusCode,
    message: String,
    /// The field of the request that is wrong.
    param: Option<String>,
    code: Option<&'static str>,
}

impl Refused {
    /// The request is wrong.
    pub fn wrong(message: impl Into<String>) -> Refused {
        Refused::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field of the request is wrong.
    pub fn field(name: &str, message: impl Into<String>) -> Refused {
        Refused {
            param: Some(name.to_owned()),
            ..Refused::wrong(message)
        }
    }

    /// The model has something against a field of the request.
    pub fn of(name: &str, error: &Error) -> Refused {
        Refused::field(name, format!("{}; {}", error.message, error.help))
    }

    /// With another status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Refused {
        Refused {
            status,
            message: message.into(),
            param: None,
            code: None,
        }
    }

    /// There is no model of this name.
    pub fn model(name: &str, own: &str) -> Refused {
        let message = format!("the model `{name}` does not exist; this is `{own}`");
        Refused {
            param: Some("model".to_owned()),
            code: Some("model_not_found"),
            ..Refused::new(StatusCode::NOT_FOUND, message)
        }
    }

    /// As many texts wait as may.
    pub fn busy() -> Refused {
        Refused {
            code: Some("rate_limit_exceeded"),
            ..Refused::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too many requests wait already; try again later",
            )
        }
    }

    /// The server ends, or has no memory for the request now.
    pub fn unavailable(message: &str) -> Refused {
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// Something failed that is not the client's.
    pub fn failed(message: impl Into<String>) -> Refused {
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// As the clients of the interface read it.
    pub fn to_json(&self) -> Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {
            "message": self.message, "type": kind, "param": self.param, "code": self.code,
        }})
    }
}

/// What the model has against a request.
impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused::wrong(format!("{}; {}", error.message, error.help))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let again = matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        );
        let body = axum::Json(self.to_json());
        let mut response = (self.status, body).into_response();
        if again {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY);
        }
        response
    }
}
