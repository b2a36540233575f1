//! What clouds with an API of JSON and a bearer token have in common: calls, their errors, and how an order is settled
//! where the cloud knows no idempotency tokens.

use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use reqwest::blocking::{Client, Response};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Cloud, CloudError, Condition, Machine, Order, Trouble, no_credentials};

/// How long one try may take.
const TRY: Duration = Duration::from_secs(20);
/// How often a call is tried that may be repeated, and how long after the first failure; then twice as long each time.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(250);
/// Longest pause that a cloud may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Longest message that is repeated.
const MAX_SAID: usize = 300;
/// How long after an order it may still have its effect, though no answer came: fifteen times what a try may take.
const SETTLED: Duration = Duration::from_secs(300);
/// How long what is deleted may take to be gone, and how often that is looked at.
const GONE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(1);
/// Most pages of a list.
const MAX_PAGES: u32 = 1000;

/// One cloud's API.
pub(super) struct Api {
    cloud: &'static str,
    base: String,
    token: String,
    client: Client,
    /// What its errors mean.
    trouble: fn(&Refusal) -> Trouble,
    /// What to try.
    hint: fn(Trouble) -> Option<String>,
}

/// A call that the cloud refused.
pub(super) struct Refusal {
    pub status: StatusCode,
    /// The cloud's name for it; may be empty.
    pub code: String,
    pub message: String,
}

/// Where and with what a cloud is reached.
pub(super) struct Access {
    /// Up to what all paths have in common.
    pub base: String,
    /// Where that comes from, should it be wrong.
    pub base_from: &'static str,
    pub token: String,
}

/// A call, in the cloud's own words: the method, and the path with names for what differs.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub action: &'static str,
    pub region: &'a str,
}

impl Api {
    /// # Errors
    /// [`Trouble::Credentials`] where the token or the address of the API can't be used.
    pub fn new(
        cloud: &'static str,
        access: Access,
        trouble: fn(&Refusal) -> Trouble,
        hint: fn(Trouble) -> Option<String>,
    ) -> Result<Self, CloudError> {
        let wrong = |said: String, hint: String| no_credentials(cloud, said, hint);
        let Access { base, base_from, token } = access;
        let is_plain = |b: u8| b.is_ascii_graphic();
        if token.is_empty() || !token.bytes().all(is_plain) {
            return Err(wrong(
                "the token is no token".into(),
                hint(Trouble::Credentials).unwrap_or_default(),
            ));
        }
        let url: Url = base.parse().map_err(|err| {
            wrong(format!("{base_from}: {err}"), "it must be a URL such as https://api.example.org/v1".into())
        })?;
        // Whoever is on the way would get the token.
        let is_here = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
        if url.scheme() != "https" && !is_here {
            return Err(wrong(format!("{base_from}: is no https:// URL"), "leave it out".into()));
        }
        let client = Client::builder().timeout(TRY).redirect(Policy::none()).https_only(!is_here);
        let client = client.user_agent(concat!("eebt/", env!("CARGO_PKG_VERSION"))).build();
        let client = client.map_err(|err| wrong(eebt_proto::causes(&err), String::new()))?;
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self { cloud, base, token, client, trouble, hint })
    }

    /// # Errors
    /// See [`CloudError`].
    pub fn get<T: DeserializeOwned>(
        &self,
        call: Call<'_>,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, CloudError> {
        let answer =
            self.tried(call, &Method::GET, path, query, None)?.map_err(|no| self.refused(call, no))?;
        self.read(call, answer)
    }

    /// All pages of a list: `items` takes one out of its answer. A page that is not full is the last.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub fn pages<P: DeserializeOwned, T>(
        &self,
        call: Call<'_>,
        path: &str,
        query: &[(&str, &str)],
        per_page: usize,
        items: impl Fn(P) -> Vec<T>,
    ) -> Result<Vec<T>, CloudError> {
        let (mut all, each) = (Vec::new(), per_page.to_string());
        for page in 1..=MAX_PAGES {
            let page = page.to_string();
            let query = [query, &[("page", page.as_str()), ("per_page", each.as_str())]].concat();
            let some = items(self.get(call, path, &query)?);
            let is_last = some.len() < per_page;
            all.extend(some);
            if is_last {
                return Ok(all);
            }
        }
        Err(self.error(call, Trouble::Unknown, format!("the list has more than {MAX_PAGES} pages")))
    }

    /// One thing; `None` if there is none.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub fn find<T: DeserializeOwned>(&self, call: Call<'_>, path: &str) -> Result<Option<T>, CloudError> {
        match self.tried(call, &Method::GET, path, &[], None)? {
            Ok(answer) => self.read(call, answer).map(Some),
            Err(no) if no.status == StatusCode::NOT_FOUND => Ok(None),
            Err(no) => Err(self.refused(call, no)),
        }
    }

    /// Makes something. It is tried once: what became of it when no answer comes is not known.
    ///
    /// # Errors
    /// Where it was refused, how; else [`Trouble::Unknown`].
    pub fn post<T: DeserializeOwned>(
        &self,
        call: Call<'_>,
        path: &str,
        body: &Value,
    ) -> Result<Result<T, Refusal>, CloudError> {
        match self.tried(call, &Method::POST, path, &[], Some(body))? {
            Ok(answer) => self.read(call, answer).map(Ok),
            Err(no) => Ok(Err(no)),
        }
    }

    /// Would it be permitted to make something? What is said of nothing, asked for as something, tells.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub fn may_post(&self, call: Call<'_>, path: &str) -> Result<String, CloudError> {
        match self.post::<Value>(call, path, &serde_json::json!({}))? {
            Err(no) if matches!(no.status, StatusCode::UNPROCESSABLE_ENTITY | StatusCode::BAD_REQUEST) => {
                Ok("permitted".to_owned())
            }
            Err(no) => Err(self.refused(call, no)),
            Ok(_) => Err(self.error(call, Trouble::Unknown, "an empty order was accepted".into())),
        }
    }

    /// Removes something. What is gone is no error.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub fn delete(&self, call: Call<'_>, path: &str) -> Result<(), CloudError> {
        match self.tried(call, &Method::DELETE, path, &[], None)? {
            Ok(_) => Ok(()),
            Err(no) if no.status == StatusCode::NOT_FOUND => Ok(()),
            Err(no) => Err(self.refused(call, no)),
        }
    }

    /// A refusal in our words.
    pub fn refused(&self, call: Call<'_>, refusal: Refusal) -> CloudError {
        let trouble = (self.trouble)(&refusal);
        let Refusal { status, code, message } = refusal;
        let code = if code.is_empty() { status.to_string() } else { code };
        self.error(call, trouble, format!("{code}: {message}"))
    }

    pub fn error(&self, call: Call<'_>, trouble: Trouble, said: String) -> CloudError {
        let (action, region, hint) = (call.action, call.region.to_owned(), (self.hint)(trouble));
        CloudError { cloud: self.cloud, action, region, trouble, said, hint }
    }

    fn read<T: DeserializeOwned>(&self, call: Call<'_>, answer: Response) -> Result<T, CloudError> {
        // It may have done what it was asked for. Its error could repeat the answer, which may hold a password.
        let odd = |_| self.error(call, Trouble::Unknown, "the answer is not as its API documents it".into());
        answer.json().map_err(odd)
    }

    /// Calls, and again where that can't do anything twice.
    fn tried(
        &self,
        call: Call<'_>,
        method: &Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Result<Response, Refusal>, CloudError> {
        let mut pause = PAUSE;
        for tried in 1.. {
            let answer = self.once(method, path, query, body);
            let (is_worth, asked_for) = match &answer {
                Ok(Ok(_)) => (false, None),
                // Throttled calls are not done.
                Ok(Err((no, headers))) if no.status == StatusCode::TOO_MANY_REQUESTS => (true, wait(headers)),
                Ok(Err((no, _))) => {
                    let is_busy = no.status.is_server_error() || (self.trouble)(no) == Trouble::Unknown;
                    (*method != Method::POST && is_busy, None)
                }
                // Not a word was said.
                Err(error) => (*method != Method::POST || error.is_connect(), None),
            };
            if !is_worth || tried == TRIES {
                return match answer {
                    Ok(answer) => Ok(answer.map_err(|(no, _)| no)),
                    Err(error) => {
                        let said = eebt_proto::causes(&error.without_url());
                        Err(self.error(call, Trouble::Unknown, said))
                    }
                };
            }
            sleep(asked_for.unwrap_or(pause).min(MAX_PAUSE));
            pause *= 2;
        }
        Err(self.error(call, Trouble::Unknown, "was not tried".into()))
    }

    #[allow(clippy::type_complexity)]
    fn once(
        &self,
        method: &Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> reqwest::Result<Result<Response, (Refusal, HeaderMap)>> {
        let url = format!("{}{path}", self.base);
        let request = self.client.request(method.clone(), url).bearer_auth(&self.token).query(query);
        let answer = match body {
            Some(body) => request.json(body).send()?,
            None => request.send()?,
        };
        if answer.status().is_success() {
            return Ok(Ok(answer));
        }
        let (status, headers) = (answer.status(), answer.headers().clone());
        let (code, message) = said(&answer.text().unwrap_or_default());
        Ok(Err((Refusal { status, code, message }, headers)))
    }
}

/// How long a throttled caller shall wait, if the cloud says: so many seconds, or until that second of the clock.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.parse::<u64>().ok().map(Duration::from_secs);
    let until =
        || (SystemTime::UNIX_EPOCH + number("ratelimit-reset")?).duration_since(SystemTime::now()).ok();
    number(RETRY_AFTER.as_str()).or_else(until)
}

/// Code and message of a refusal: `{"error": {"code", "message"}}`, or `{"id", "message"}`.
fn said(body: &str) -> (String, String) {
    #[derive(Default, Deserialize)]
    struct Body {
        #[serde(default)]
        error: Option<Inner>,
        #[serde(default)]
        id: String,
        #[serde(default)]
        message: String,
    }
    #[derive(Deserialize)]
    struct Inner {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Body { error, id, message } = serde_json::from_str(body).unwrap_or_default();
    let (code, message) = error.map_or((id, message), |error| (error.code, error.message));
    let plain = |text: String| text.chars().filter(|c| !c.is_control()).take(MAX_SAID).collect();
    (plain(code), plain(message))
}

/// Deletes machines and sees them gone: that it was accepted is not that it was done.
pub(super) fn end(
    cloud: &dyn Cloud,
    api: &Api,
    call: Call<'_>,
    machines: &[String],
    path: impl Fn(&str) -> String,
) -> Result<(), CloudError> {
    let deleted = super::each(machines, |machine| api.delete(call, &path(machine)));
    let start = Instant::now();
    deleted.and(super::each(machines, |machine| {
        while cloud.describe(call.region, machine)?.is_some() {
            if start.elapsed() > GONE {
                return Err(api.error(
                    call,
                    Trouble::Unknown,
                    "it was accepted, and the machine is still there".into(),
                ));
            }
            sleep(LOOK);
        }
        Ok(())
    }))
}

/// What became of an order at a cloud without idempotency tokens: its machine is looked for by its tags, until the order
/// can't have an effect any more. It is never given again, for that could buy a second one.
pub(super) fn settle(
    cloud: &dyn Cloud,
    order: &Order,
    now: SystemTime,
    error: impl Fn(String) -> CloudError,
) -> Result<Option<Machine>, CloudError> {
    let found = cloud.list(&order.region)?.into_iter().find(|machine| {
        machine.tags.id == order.tags.id
            && machine.tags.fleet == order.tags.fleet
            && machine.condition != Condition::Gone
    });
    if found.is_some() || now.duration_since(order.given).is_ok_and(|age| age > SETTLED) {
        return Ok(found);
    }
    Err(error(format!("no answer came; its machine may still appear, for {} s", SETTLED.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_errors_are_read() {
        assert_eq!(
            said(r#"{"error":{"code":"locked","message":"a\nb","details":null}}"#),
            ("locked".into(), "ab".into())
        );
        assert_eq!(
            said(r#"{"id":"not_found","message":"no","request_id":"x"}"#),
            ("not_found".into(), "no".into())
        );
        assert_eq!(said("<html>"), (String::new(), String::new()));
    }

    #[test]
    fn a_token_goes_nowhere_in_the_clear() {
        let api = |base: &str, token: &str| {
            let access = Access { base: base.into(), base_from: "X_URL", token: token.into() };
            Api::new("x", access, |_| Trouble::Refused, |_| None).err().map(|error| error.said)
        };
        assert_eq!(api("https://api.example.org/v1", "abc"), None);
        assert_eq!(api("http://127.0.0.1:1/v1", "abc"), None);
        assert!(api("http://api.example.org/v1", "abc").unwrap().contains("X_URL"));
        assert!(api("http://127.0.0.1.example.org/v1", "abc").unwrap().contains("X_URL"));
        assert!(api("nonsense", "abc").unwrap().contains("X_URL"));
        assert!(api("https://api.example.org/v1", "a b").is_some());
        assert!(api("https://api.example.org/v1", "").is_some());
    }
}
