//! What all pages are put together from. maud escapes what comes from outside.

use maud::{DOCTYPE, Markup, html};

/// Seconds after which a page that follows what happens is loaded again.
pub const LIVE: u32 = 5;

/// What is around every page. One that is `live` loads itself again; the usual one does not, for that disturbs who reads
/// it with a screen reader or is about to press a button.
pub fn frame(title: &str, live: bool, inside: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if live { meta http-equiv="refresh" content=(LIVE); }
                title { (title) }
                link rel="stylesheet" href="style.css";
            }
            body { (inside) }
        }
    }
}

/// The links by which a page is loaded again.
pub fn refresh(live: bool) -> Markup {
    html! {
        p.refresh {
            @if live {
                "This page is loaded again every " (LIVE) " seconds. " a href="./" { "Stop that" }
            } @else {
                a href="./" { "Refresh" } " " a href="./?live" { "Refresh every " (LIVE) " seconds" }
            }
        }
    }
}

/// A table that can be scrolled sideways by keyboard where it is too wide.
pub fn table(caption: &str, rows: Markup) -> Markup {
    html! {
        div.wide role="region" aria-label=(caption) tabindex="0" { table { caption { (caption) } (rows) } }
    }
}
