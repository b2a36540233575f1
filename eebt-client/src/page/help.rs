//! How programs are led here, with the address that they need.

use std::net::SocketAddr;

use maud::{Markup, html};

/// Help for the first run.
pub(super) fn help(listen: &[SocketAddr]) -> Markup {
    let Some(proxy) = listen.first() else { return html! {} };
    let (host, port) = (proxy.ip(), proxy.port());
    html! {
        section aria-labelledby="help" {
            h2 #help { "Help" }
            p {
                "Programs reach this client at "
                @for (i, addr) in listen.iter().enumerate() { @if i > 0 { ", " } code { (addr) } }
                ", by SOCKS5, SOCKS4a or HTTP CONNECT."
            }
            (tor_browser(host, port))
            details {
                summary { "Firefox" }
                ol {
                    li { "Settings, General, Network Settings: “Manual proxy configuration”. SOCKS Host " code { (host) } ", Port " code { (port) } ", SOCKS v5." }
                    li { "Tick “Proxy DNS when using SOCKS v5”, or names are looked up outside of Tor." }
                    li { "Leave the fields for HTTP and HTTPS proxies empty. Set DNS over HTTPS to “Off”." }
                    li { "In " code { "about:config" } " set " code { "media.peerconnection.enabled" } " to " code { "false" } ": WebRTC can tell sites your own address." }
                }
                p { "Firefox is no Tor Browser: sites can recognise it, and its tabs share one circuit, so that exit bridges and Tor exits \
                     see which sites one person visits. “Another exit bridge” moves all sites then." }
            }
            details {
                summary { "curl" }
                pre tabindex="0" aria-label="curl command" { code { "curl --proxy socks5h://" (proxy) " https://example.com/" } }
                p { "The " code { "h" } " in " code { "socks5h" } " has names looked up at the far end. With " code { "socks5" } " they are looked up outside of Tor. \
                     " code { "--proxy-user name:x" } " gives requests of that name a circuit of their own." }
            }
            details {
                summary { "Other programs, and the whole system" }
                p { "This is a proxy and no VPN: what does not ask it goes on as before, past Tor. There is no switch here that sends \
                     everything through it." }
                ul {
                    li { "Programs with proxy settings: SOCKS5, " code { (proxy) } ", and “DNS through the proxy” where there is such a setting." }
                    li { "Programs without any: " code { "torsocks --address " (host) " --port " (port) " PROGRAM" } ". It reaches most that are dynamically linked, and refuses UDP." }
                    li { "The system's own proxy settings (GNOME, KDE): SOCKS host " code { (host) } ", port " code { (port) } ". Programs are free to ignore them, and many do, or look names up themselves." }
                    li { "Who needs everything to go through Tor, without exception, needs a system that is made for it, such as Tails or Whonix." }
                }
            }
            details {
                summary { "A site still refuses me" }
                ol {
                    li { "A page that says “no” inside HTTPS can't be seen from outside. Choose “Exit bridge” for the site above, and load it again." }
                    li { "When it refuses that exit bridge, too: “Still blocks me: another exit bridge”." }
                    li { "Sites also recognise visitors by cookies and by their browser. A new identity or a private window may help." }
                    li { "Parts of a page come from other sites. They stand beneath the same name in the list, and may need the same choice." }
                }
            }
        }
    }
}

fn tor_browser(host: std::net::IpAddr, port: u16) -> Markup {
    html! {
        details open {
            summary { "Tor Browser" }
            p { "Have it use this client instead of the Tor that it brings along. On Linux, in its folder:" }
            pre tabindex="0" aria-label="Command for Tor Browser" { code {
                "TOR_SKIP_LAUNCH=1 TOR_SKIP_CONTROLPORTTEST=1 TOR_SOCKS_HOST=" (host) " TOR_SOCKS_PORT=" (port) " ./start-tor-browser"
            } }
            ul {
                li { "Tor Browser's own Tor takes ports 9150 and 9151. To have both at once give this client another port, such as \
                      " code { "--listen 127.0.0.1:9250" } "." }
                li { "It says for which site in the address bar it asks, so that each has its own circuit and exit bridge. Its own display of circuits stays empty." }
                li { "Open this page in another browser: Tor Browser sends requests for this machine to its proxy, too." }
            }
        }
    }
}
