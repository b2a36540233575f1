//! As much of JSON Schema (draft 2020-12) as the OpenAPI file uses. A keyword that is not known here is an
//! error, so that nothing in the file goes unchecked.
//!
//! Why not a crate: those that exist turn on features of `serde_json` and `regex` which Arti does without,
//! and then everything is built a second time for the tests.

use regex_lite::Regex;
use serde_json::Value;

/// Keywords that say something to people and programs, and nothing about what is valid.
const NOTES: [&str; 7] =
    ["title", "description", "examples", "format", "contentEncoding", "contentMediaType", "contentSchema"];

/// Holds `value` against `schema`, whose references lead into `root`.
pub fn check(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let keywords = schema.as_object().ok_or("a schema that is no object")?;
    for (keyword, want) in keywords {
        let holds = match keyword.as_str() {
            note if NOTES.contains(&note) => true,
            "$ref" => {
                return check(root, resolve(root, want)?, value).and_then(|()| match keywords.len() {
                    1 => Ok(()),
                    _ => Err("a $ref with other keywords beside it".into()),
                });
            }
            "allOf" => {
                list(want)?.iter().try_for_each(|schema| check(root, schema, value))?;
                true
            }
            "type" => match want {
                Value::String(_) => is_of_type(value, want),
                types => list(types)?.iter().any(|want| is_of_type(value, want)),
            },
            "const" => value == want,
            "enum" => list(want)?.contains(value),
            "minimum" => number(value).is_none_or(|n| n >= number(want).unwrap_or_default()),
            "maximum" => number(value).is_none_or(|n| n <= number(want).unwrap_or_default()),
            "minLength" => length(value).is_none_or(|n| n >= number(want).unwrap_or_default()),
            "maxLength" => length(value).is_none_or(|n| n <= number(want).unwrap_or_default()),
            "pattern" => {
                let pattern = Regex::new(want.as_str().ok_or("pattern")?).map_err(|e| e.to_string())?;
                value.as_str().is_none_or(|text| pattern.is_match(text))
            }
            "maxItems" => {
                value.as_array().is_none_or(|a| a.len() as u64 <= want.as_u64().unwrap_or_default())
            }
            "items" => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                items.iter().try_for_each(|item| check(root, want, item))?;
                true
            }
            "required" => {
                let missing = list(want)?.iter().find(|name| {
                    value.as_object().is_some_and(|o| !o.contains_key(name.as_str().unwrap_or_default()))
                });
                missing.map_or(Ok(true), |name| Err(format!("{name} is missing")))?
            }
            "properties" => {
                for (name, schema) in want.as_object().ok_or("properties")? {
                    if let Some(value) = value.get(name) {
                        check(root, schema, value).map_err(|e| format!("{name}: {e}"))?;
                    }
                }
                true
            }
            "additionalProperties" => {
                let known = |name: &String| schema["properties"].get(name).is_some();
                let unknown = value.as_object().and_then(|o| o.keys().find(|name| !known(name)));
                match (want, unknown) {
                    (Value::Bool(true), _) | (Value::Bool(false), None) => true,
                    (Value::Bool(false), Some(name)) => return Err(format!("{name} is not foreseen")),
                    _ => return Err("additionalProperties is true or false here".into()),
                }
            }
            other => return Err(format!("keyword {other} is not known to this test")),
        };
        if !holds {
            return Err(format!("{keyword} {want} does not hold for {value}"));
        }
    }
    Ok(())
}

/// What a reference such as `#/components/schemas/Ask` leads to.
pub fn resolve<'a>(root: &'a Value, reference: &Value) -> Result<&'a Value, String> {
    let pointer = reference.as_str().and_then(|text| text.strip_prefix('#'));
    pointer.and_then(|pointer| root.pointer(pointer)).ok_or_else(|| format!("{reference} leads nowhere"))
}

fn is_of_type(value: &Value, name: &Value) -> bool {
    match name.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => false,
    }
}

fn list(value: &Value) -> Result<&Vec<Value>, String> {
    value.as_array().ok_or_else(|| format!("expected a list, found {value}"))
}

fn number(value: &Value) -> Option<i128> {
    value.as_u64().map(i128::from).or(value.as_i64().map(i128::from))
}

fn length(value: &Value) -> Option<i128> {
    value.as_str().and_then(|text| text.chars().count().try_into().ok())
}

#[test]
fn every_keyword_refuses_something() {
    use serde_json::json;
    let root = json!({ "$defs": { "Yes": { "const": true } } });
    for (schema, good, bad) in [
        (json!({ "$ref": "#/$defs/Yes" }), vec![json!(true)], vec![json!(false)]),
        (json!({ "$ref": "#/$defs/No" }), vec![], vec![json!(true)]),
        (json!({ "allOf": [{ "minimum": 1 }, { "maximum": 3 }] }), vec![json!(3)], vec![json!(0), json!(4)]),
        (json!({ "type": "integer" }), vec![json!(1), json!(-1)], vec![json!(1.5), json!("1")]),
        (json!({ "type": ["string", "null"] }), vec![json!(null), json!("")], vec![json!(1)]),
        (json!({ "type": "object" }), vec![json!({})], vec![json!([])]),
        (json!({ "type": "number" }), vec![], vec![json!(1)]),
        (json!({ "enum": ["a", null] }), vec![json!(null), json!("a")], vec![json!("b")]),
        (json!({ "const": 1 }), vec![json!(1)], vec![json!(2)]),
        (json!({ "minimum": 1 }), vec![json!(1), json!("0")], vec![json!(0)]),
        (json!({ "maximum": 1 }), vec![json!(1)], vec![json!(u64::MAX)]),
        (json!({ "minLength": 2 }), vec![json!("ää")], vec![json!("ä")]),
        (json!({ "maxLength": 2 }), vec![json!("ää")], vec![json!("äää")]),
        (json!({ "pattern": "^[A-Z]{2}$" }), vec![json!("DE"), json!(1)], vec![json!("DEU")]),
        (json!({ "maxItems": 1 }), vec![json!([null])], vec![json!([null, null])]),
        (json!({ "items": { "type": "null" } }), vec![json!([null])], vec![json!([null, 1])]),
        (json!({ "required": ["a"] }), vec![json!({ "a": 1 })], vec![json!({ "b": 1 })]),
        (json!({ "properties": { "a": { "const": 1 } } }), vec![json!({ "a": 1 })], vec![json!({ "a": 2 })]),
        (json!({ "additionalProperties": false }), vec![json!({})], vec![json!({ "b": 1 })]),
        (json!({ "oneOf": [] }), vec![], vec![json!(1)]),
    ] {
        for value in good {
            assert_eq!(check(&root, &schema, &value), Ok(()), "{schema}");
        }
        for value in bad {
            assert!(check(&root, &schema, &value).is_err(), "{schema} takes {value}");
        }
    }
}
