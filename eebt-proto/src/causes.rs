//! Errors as a person reads them.

/// An error with its causes, on one line: `cannot write x: No space left on device`.
#[must_use]
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let texts = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    texts.collect::<Vec<_>>().join(": ")
}
