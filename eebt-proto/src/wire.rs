//! How values stand in JSON: keys in base64 (RFC 4648, no padding), times in UTC (RFC 3339).

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};

/// Why a text is not the message that was expected. Names the field that it is about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

/// Reads a message: one JSON object, and nothing behind it.
///
/// # Errors
/// See [`JsonError`].
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    let mut text = serde_json::Deserializer::from_slice(bytes);
    let mut path = serde_path_to_error::Track::new();
    let read = object(serde_path_to_error::Deserializer::new(&mut text, &mut path));
    let read = read.map_err(|error: serde_json::Error| match path.path().to_string().as_str() {
        "." => error.to_string(),
        field => format!("{field}: {error}"),
    });
    let read = read.and_then(|read| text.end().map(|()| read).map_err(|error| error.to_string()));
    read.map_err(JsonError)
}

/// A value that stands in braces. Serde by itself would take its fields from an array as well, in their
/// order.
pub(crate) fn object<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Braces<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Braces<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }

    from.deserialize_map(Braces(PhantomData))
}

/// A time, to the millisecond.
pub(crate) mod time {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_rfc3339_millis(*at))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_rfc3339(&text).map_err(|_| {
            serde::de::Error::custom("expected a UTC time such as 2026-12-01T12:00:00Z (RFC 3339)")
        })
    }
}

/// Bytes of a known number.
pub(crate) mod bytes {
    use data_encoding::BASE64_NOPAD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer, const N: usize>(
        bytes: &[u8; N],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64_NOPAD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        from: D,
    ) -> Result<[u8; N], D::Error> {
        let text = String::deserialize(from)?;
        let bytes = BASE64_NOPAD.decode(text.as_bytes()).ok();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| serde::de::Error::custom(format!("expected {N} bytes in base64 without padding")))
    }
}

/// A value that has a text form of its own.
pub(crate) mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer, T: Display>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
        from: D,
    ) -> Result<T, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::{Ask, Report, Wishes};
    use crate::{SignedDocument, Ticket};

    fn error<T: DeserializeOwned>(text: &str) -> String {
        from_json::<T>(text.as_bytes()).err().unwrap().to_string()
    }

    #[test]
    fn errors_name_the_field() {
        let key = "A".repeat(43);
        assert!(error::<SignedDocument>(r#"{"document":5}"#).starts_with("document: invalid type"));
        assert!(error::<SignedDocument>(r#"{"document":""}"#).contains("`signature`"));
        assert!(error::<SignedDocument>(r#"{"signature":"AA"}"#).starts_with("signature: expected 64 bytes"));
        assert!(
            error::<Ticket>(&format!(r#"{{"kind":"argon2id","key":"{key}","day":-1}}"#)).starts_with("day:")
        );
        assert!(error::<Ask>(r#"{"ticket":{"kind":"x"}}"#).starts_with("ticket.kind: unknown variant"));
        assert!(error::<Wishes>(r#"{"contry":"SE"}"#).contains("contry"));
    }

    #[test]
    fn a_message_is_an_object_and_nothing_behind_it() {
        let key = "A".repeat(43);
        let ticket = format!(r#"{{"kind":"argon2id","key":"{key}","day":1,"nonce":2}}"#);
        let ask = format!(r#"{{"ticket":{ticket}}}"#);
        assert!(from_json::<Ask>(ask.as_bytes()).is_ok());
        assert!(error::<Ask>(&format!("{ask} x")).contains("trailing"));
        // Serde by itself reads all of these.
        assert!(error::<Ask>(&format!("[{ticket},{{}}]")).contains("expected an object"));
        let array = format!(r#"["argon2id","{key}",1,2]"#);
        assert!(
            error::<Ask>(&format!(r#"{{"ticket":{array}}}"#)).starts_with("ticket: invalid type: sequence")
        );
        assert!(
            error::<Report>(&format!(r#"{{"ticket":{array}}}"#))
                .starts_with("ticket: invalid type: sequence")
        );
        let wishes = format!(r#"{{"ticket":{ticket},"wishes":[80,null,null]}}"#);
        assert!(error::<Ask>(&wishes).starts_with("wishes: invalid type: sequence"));
    }
}
