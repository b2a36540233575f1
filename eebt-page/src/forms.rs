//! What the buttons of a page send.
//!
//! A form answers with "see the page": loading that again does nothing twice. What came of it is shown there for a
//! while, at the top, where the browser goes then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse as _;
use axum::routing::{MethodRouter, post};

/// How long it is said what came of the last form.
const SAID_FOR: Duration = Duration::from_secs(60);

/// The fields of a form.
pub struct Fields(HashMap<String, String>);

impl Fields {
    /// One of them.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// What is said of the last form.
pub struct Last<S>(Mutex<Option<(Instant, S)>>);

impl<S> Default for Last<S> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<S: Clone> Last<S> {
    /// To be said from now on.
    pub fn say(&self, said: S) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), said));
    }

    /// What is to be said now.
    pub fn said(&self) -> Option<S> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(at, _)| at.elapsed() < SAID_FOR).map(|(_, said)| said.clone())
    }
}

/// What forms work with.
pub trait Shared: Send + Sync + 'static {
    /// What is said of them.
    type Said: Clone + Send + 'static;
    /// What was said last.
    fn last(&self) -> &Last<Self::Said>;
    /// Why nothing was done, if nothing was.
    fn refusal(said: &Self::Said) -> Option<String>;
}

/// What a form does; `None` when its fields are not those that the page sends.
pub type Does<T> = fn(&T, &Fields) -> Option<<T as Shared>::Said>;

/// A request that reads a form, does what it says, and leads back to the page.
pub fn form<T: Shared>(does: Does<T>) -> MethodRouter<Arc<T>> {
    post(async move |State(shared): State<Arc<T>>, headers: HeaderMap, body: Bytes| {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.split(';').next() != Some("application/x-www-form-urlencoded") {
            return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "a form is expected\n").into_response();
        }
        let fields = Fields(form_urlencoded::parse(&body).into_owned().collect());
        match does(&shared, &fields) {
            Some(said) => {
                let refusal = T::refusal(&said);
                shared.last().say(said);
                // A program is told at once; a browser sees it on the page.
                if headers.get(header::ACCEPT).is_some_and(|wanted| wanted == "text/plain") {
                    return match refusal {
                        Some(why) => (StatusCode::CONFLICT, why).into_response(),
                        None => StatusCode::NO_CONTENT.into_response(),
                    };
                }
                (StatusCode::SEE_OTHER, [(header::LOCATION, "./#said")]).into_response()
            }
            None => (StatusCode::UNPROCESSABLE_ENTITY, "a field is missing or wrong\n").into_response(),
        }
    })
}
