//! The first page: what lending an address means, and the owner's word. Nothing runs before it is given.

use eebt_page::html::frame;
use maud::{Markup, html};

use super::Said;
use super::html::say;

/// The page.
pub(super) fn page(said: Option<&Said>) -> Markup {
    frame(
        "Lend your address?",
        false,
        html! {
            header { h1 { "Lend your address?" } p { "Nothing runs yet, and nothing will unless you agree below." } }
            main {
                div #said role="status" tabindex="-1" { @if let Some(said) = said { p.said { (say(said)) } } }
                section aria-labelledby="what" {
                    h2 #what { "What happens" }
                    p {
                        "Many web sites turn people away who use Tor, because the addresses that Tor's traffic comes from are on a \
                         public list. While your computer is idle, this app lets a few of these people visit web sites from your \
                         address. It is on no list, so the sites open."
                    }
                    p {
                        "People reach your computer through Tor. You don't learn who they are, and they don't reach your computer, \
                         your router or anything else in your home: you can try that yourself, on the next page."
                    }
                }
                section aria-labelledby="means" {
                    h2 #means { "What that means for you" }
                    ul {
                        li { b { "Sites see your address. " } "To a web site, what these people do looks as if it came from your home. Some \
                             people break rules or laws. A site may block your address or show you more captchas; your provider \
                             may forward a complaint; the police may ask. You can then show a signed statement of when your \
                             address was lent." }
                        li { b { "Your provider sees Tor. " } "It sees that your computer speaks with Tor, and web sites being visited from your \
                             line. Its terms may forbid that others use your line." }
                        li { b { "It takes some of your line, " } "within limits that you set, and rests when you use the computer, when it is \
                             on battery, when the line is metered, and more. It always says why." }
                        li { b { "You can't see what people do, " } "and the app keeps no record of it: no site and no person is ever written down." }
                    }
                }
                section aria-labelledby="where" {
                    h2 #where { "Where it may be a bad idea" }
                    ul {
                        li { "Where Tor is blocked or its use is a reason to be noticed, such as China, Iran, Russia, Belarus, Turkmenistan, \
                              Myanmar, the United Arab Emirates or Saudi Arabia: your line would stand out, and you could be held to \
                              answer for what others read." }
                        li { "Where the owner of a line is held liable for what others do with it unless they can prove otherwise, or where \
                              providers end contracts after complaints. In the European Union, who merely carries traffic is in \
                              principle not liable for it (Digital Services Act, article 4); courts have still taken years." }
                        li { "On a line that is not yours to lend: at work, at school, in a hotel, in a shared flat without asking, or on a \
                              mobile line that is paid by the byte." }
                        li { "If a search of your home, or questions about it, would put you or those who live with you in danger." }
                    }
                    p.quiet { "This is no legal advice. If you are not sure, don't; people with Tor have other ways, and you can help by other means." }
                }
                section aria-labelledby="agree" {
                    h2 #agree { "Your word" }
                    form method="post" action="agree" {
                        p {
                            label {
                                input type="checkbox" name="understood" value="yes";
                                "I have read this. This line is mine to lend, and I want strangers to visit web sites from my address."
                            }
                        }
                        p { button { "Agree and begin" } }
                    }
                    form method="post" action="end" { p { button { "No, end this app" } } }
                }
            }
            footer { p { "You can take your word back at any time: switch it off, or uninstall it with “hebtor-volunteer uninstall”." } }
        },
    )
}
