//! The client's local page: what it shows, what the person chooses there, and who is kept out.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use tests::{Chromium, Client, Dns, Lab, Look};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio_socks::tcp::Socks5Stream;

use crate::Suite;

pub fn cases(suite: &mut Suite) {
    suite.case("local page: a visit shows up, with its way and why", shows_visits);
    suite.case("local page: the person's switch wins over mode, rules and verdicts", switch_wins);
    suite.case("local page: another exit bridge is another address", another_address);
    suite.case("local page: it tells when an exit bridge dies under a download", tells_of_death);
    suite.case(
        "local page: it tells when an exit bridge dies while it takes over from Tor",
        tells_of_early_death,
    );
    suite.case("a web page that asks the proxy's port learns nothing of what it is", says_nothing);
    suite.case("local page: other sites, other names and other users are kept out", keeps_out);
    suite.case("local page: its token and the sites are in no log", logs_nothing);
    suite.case("local page: a taken port, a page that is off, and one that would be remote", ports);
    suite.case("local page: Chromium without JavaScript, by mouse, keyboard and screen reader", in_chromium);
}

/// The page, as a program sees it that has its address.
struct Page {
    url: String,
}

/// An answer.
struct Answer {
    status: u16,
    /// Head and body.
    text: String,
}

impl Page {
    async fn of(client: &Client) -> anyhow::Result<Self> {
        Ok(Self { url: client.page().await? })
    }

    /// `127.0.0.1:PORT`.
    fn host(&self) -> &str {
        self.url.split('/').nth(2).unwrap_or_default()
    }

    fn token(&self) -> &str {
        self.url.split('/').nth(3).unwrap_or_default()
    }

    async fn html(&self) -> anyhow::Result<String> {
        let answer = curl(&self.url, &[]).await?;
        ensure!(answer.status == 200, "{}", answer.text);
        Ok(answer.text)
    }

    /// Sends a form as a browser does that shows the page; what the page says then.
    async fn send(&self, action: &str, fields: &[(&str, &str)]) -> anyhow::Result<String> {
        let origin = format!("Origin: http://{}", self.host());
        let mut args = vec!["-H".to_owned(), origin, "-d".to_owned(), String::new()];
        for (name, value) in fields {
            args.extend(["--data-urlencode".to_owned(), format!("{name}={value}")]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let answer = curl(&format!("{}{action}", self.url), &args).await?;
        ensure!(answer.status == 303 && answer.text.contains("location: ./#said\r\n"), "{}", answer.text);
        self.html().await
    }
}

/// Asks without a proxy.
async fn curl(url: &str, args: &[&str]) -> anyhow::Result<Answer> {
    let mut command = Command::new("curl");
    command.args(["-s", "-i", "--path-as-is", "--noproxy", "*", "--max-time", "20"]).args(args).arg(url);
    let text = String::from_utf8_lossy(&command.output().await?.stdout).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    Ok(Answer { status, text })
}

/// The part of a page that is about a host in the list of sites.
fn about<'a>(html: &'a str, host: &str) -> anyhow::Result<&'a str> {
    let at = html.find(&format!("<h4>{host}</h4>")).with_context(|| format!("no {host} in {html}"))?;
    Ok(html[at..].split("</li>").next().unwrap_or_default())
}

async fn shows_visits(lab: &Lab) -> anyhow::Result<()> {
    let bridge = lab.bridge().run().await?;
    let client = lab.client().via(&bridge).set("mode", "auto").run().await?;
    let page = Page::of(&client).await?;
    let (open, blocking) = (lab.origins.open(), lab.origins.blocking_tor_exits());
    ensure!(page.html().await?.contains("Nothing has gone through this client"));
    ensure!(client.get_as("party.example", &open.url("/bulk/2000000")).await?.status == 200);
    ensure!(client.get(&blocking.url("/")).await?.status == 200);
    let html = page.html().await?;
    ensure!(html.contains("<h3>party.example "), "the first party: {html}");
    let of_open = about(&html, &open.addr().ip().to_string())?;
    ensure!(of_open.contains(">Tor</span>") && of_open.contains("<dd>2.0 MB</dd>"), "{of_open}");
    ensure!(of_open.contains("<dt>Open</dt><dd>0</dd>"), "curl has gone: {of_open}");
    let of_blocking = about(&html, &blocking.addr().ip().to_string())?;
    ensure!(of_blocking.contains("exit bridge 1</span>"), "{of_blocking}");
    ensure!(of_blocking.contains("for the site does not let Tor in"), "{of_blocking}");
    ensure!(html.contains("works, in use for"), "the exit bridge: {html}");

    // The verdict, why, and that it can be forgotten.
    let verdicts = html.split("turned Tor away, and how").last().unwrap_or_default();
    let port = blocking.addr().port().to_string();
    ensure!(verdicts.contains(&format!("<td>{port}</td>")), "{verdicts}");
    let ip = blocking.addr().ip().to_string();
    let html = page.send("forget-verdict", &[("host", &ip), ("port", &port)]).await?;
    ensure!(html.contains("None is known to turn Tor away"), "{html}");
    blocking.clear_hits();
    ensure!(client.get(&blocking.url("/")).await?.status == 200);
    ensure!(blocking.hits().len() == 2, "Tor is asked again: {:?}", blocking.hits());

    // An open stream is counted while it lasts, whatever the bytes.
    let mut stream = Socks5Stream::connect(client.proxy, lab.origins.echo().addr()).await?;
    stream.write_all(b"hello").await?;
    stream.read_exact(&mut [0; 5]).await?;
    let echo = lab.origins.echo().addr().ip().to_string();
    let html = page.html().await?;
    let of_echo = about(&html, &echo)?;
    ensure!(of_echo.contains("<dt>Open</dt><dd>1</dd>"), "{of_echo}");
    ensure!(of_echo.matches("<dd>5 B</dd>").count() == 2, "{of_echo}");
    let html = page.send("forget-visits", &[]).await?;
    ensure!(about(&html, &echo).is_ok() && about(&html, &ip).is_err(), "only the open one stays");
    Ok(())
}

async fn switch_wins(lab: &Lab) -> anyhow::Result<()> {
    let bridge = lab.bridge().run().await?;
    let origin = lab.origins.blocking_tor_exits();
    let (ip, url) = (origin.addr().ip().to_string(), origin.url("/"));
    let state = lab.folder("state");
    let client = |mode: &str, rule: &str| {
        let rules = vec![format!("{ip}={rule}")];
        let client = lab.client().via(&bridge).set("mode", mode).set("rules", rules);
        client.set("state_dir", state.display().to_string()).run()
    };
    let file = state.join("choices.json");
    {
        let client = client("always", "exit-bridge").await?;
        let page = Page::of(&client).await?;
        ensure!(client.get(&url).await?.status == 200, "mode always");
        let html = page.send("choose", &[("host", &ip), ("way", "tor")]).await?;
        ensure!(html.contains("is reached through Tor alone from now on"), "{html}");
        ensure!(client.get(&url).await?.status == 403, "Tor, though the mode is always");
        ensure!(std::fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600);
    }
    {
        // They outlive the program, and a verdict does not change them.
        let client = client("auto", "exit-bridge").await?;
        let page = Page::of(&client).await?;
        ensure!(client.get(&url).await?.status == 403, "Tor, though there is a rule");
        ensure!(about(&page.html().await?, &ip)?.contains("You chose Tor."));
        page.send("choose", &[("host", &ip), ("way", "auto")]).await?;
        ensure!(client.get(&url).await?.status == 200, "as the rule says");
        ensure!(!file.exists(), "there is no choice left");
    }
    {
        let client = client("auto", "auto").await?;
        let page = Page::of(&client).await?;
        ensure!(client.get(&url).await?.status == 200, "mode auto");
        page.send("choose", &[("host", &ip), ("way", "tor")]).await?;
        ensure!(client.get(&url).await?.status == 403, "Tor, though there is a verdict");
    }
    let client = client("never", "tor").await?;
    let page = Page::of(&client).await?;
    page.send("choose", &[("host", &ip), ("way", "exit-bridge")]).await?;
    ensure!(client.get(&url).await?.status == 200, "an exit bridge, though the mode is never");
    let html = page.send("choose", &[("host", "*.abc.onion"), ("way", "exit-bridge")]).await?;
    ensure!(html.contains("always reached through Tor alone"), "{html}");

    // A connection that is kept open does not go on the old way.
    let echo = lab.origins.echo().addr();
    let mut stream = Socks5Stream::connect(client.proxy, echo).await?;
    stream.write_all(b"hello").await?;
    stream.read_exact(&mut [0; 5]).await?;
    page.send("choose", &[("host", &echo.ip().to_string()), ("way", "exit-bridge")]).await?;
    let end = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0])).await?;
    ensure!(end.is_err(), "it must not look like an end: {end:?}");
    let html = page.send("forget-choices", &[]).await?;
    ensure!(html.contains("You have chosen nothing yet") && !file.exists());
    Ok(())
}

async fn another_address(lab: &Lab) -> anyhow::Result<()> {
    let bridges = [lab.bridge().run().await?, lab.bridge().run().await?];
    let client = bridges.iter().fold(lab.client(), |c, b| c.via(b)).run().await?;
    let page = Page::of(&client).await?;
    let origin = lab.origins.open();
    let (ip, peer) = (origin.addr().ip().to_string(), origin.url("/peer"));
    let site = [("host", ip.as_str()), ("party", "party.example")];
    let first = client.get_as("party.example", &peer).await?.text;
    let other = client.get_as("other.example", &peer).await?.text;
    let html = page.send("another", &site).await?;
    ensure!(html.contains("from now on, and sees another address"), "{html}");
    let second = client.get_as("party.example", &peer).await?.text;
    ensure!(first != second && bridges.iter().any(|b| b.ip.to_string() == second), "{first}, then {second}");
    ensure!(client.get_as("party.example", &peer).await?.text == second, "it stays there");
    ensure!(client.get_as("other.example", &peer).await?.text == other, "others stay where they are");
    ensure!(!page.html().await?.contains("class=\"notice\""), "that is no news");
    let html = page.send("another", &site).await?;
    ensure!(html.contains("There is no other exit bridge for"), "{html}");
    ensure!(client.get_as("party.example", &peer).await?.text == second, "it keeps what it has");
    let html = page.send("another", &[("host", "unknown.example")]).await?;
    ensure!(html.contains("is not reached through an exit bridge now"), "{html}");
    Ok(())
}

async fn tells_of_death(lab: &Lab) -> anyhow::Result<()> {
    let bridges = [lab.bridge().run().await?, lab.bridge().run().await?];
    let client = bridges.iter().fold(lab.client(), |c, b| c.via(b)).run().await?;
    let page = Page::of(&client).await?;
    let peer = lab.origins.open().url("/peer");
    let serving = client.get_as("party.example", &peer).await?.text;
    let killed = bridges.iter().find(|b| b.ip.to_string() == serving).context("one of ours")?;
    let url = lab.origins.open().url("/bulk/200000000");
    let (download, ()) = tokio::join!(client.get_as("party.example", &url), async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        killed.process.signal(Signal::SIGKILL);
    });
    ensure!(download?.exit_code != 0);
    let ip = lab.origins.open().addr().ip();
    let html = page.html().await?;
    let notice = format!("<strong>{ip}</strong> (for party.example): the connection to exit bridge ");
    ensure!(html.contains(&notice) && html.contains("was lost while it was in use"), "{html}");
    let next = client.get_as("party.example", &peer).await?.text;
    ensure!(next != serving);
    let html = page.html().await?;
    ensure!(html.contains("did not work any more, and what was being loaded broke off"), "{html}");
    ensure!(html.matches("class=\"notice\"").count() == 1, "one for each site: {html}");
    ensure!(html.contains("a log-in may have to be repeated"));
    let mut browser = Chromium::start().await?;
    browser.look(Look { width: 700, dark: false }).await?;
    browser.open(&page.url).await?;
    let tree = browser.accessibility().await?;
    let button = format!("Dismiss the notice about {ip}");
    ensure!(tree.iter().any(|n| n.role == "button" && n.name == button), "{tree:?}");
    browser.picture("page-notice").await?;
    let id = html.split("name=\"notice\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    let html = page.send("dismiss", &[("notice", id.context("no button")?)]).await?;
    ensure!(!html.contains("class=\"notice\""), "{html}");
    ensure!(html.contains("left alone for"), "the dead exit bridge: {html}");
    Ok(())
}

/// The origin refuses Tor, and begins an answer to the exit bridge that it never ends.
async fn tells_of_early_death(lab: &Lab) -> anyhow::Result<()> {
    let listener = TcpListener::bind((lab.net.spare_ip(), 0)).await?;
    let addr = listener.local_addr()?;
    let bridge = lab.bridge().opens(addr).run().await?;
    let client = lab.client().via(&bridge).set("mode", "auto").run().await?;
    let page = Page::of(&client).await?;
    let (tor, url) = (lab.net.exit_egress_ip(), format!("http://{addr}/"));
    let origin = async {
        loop {
            let (mut stream, peer) = listener.accept().await?;
            stream.read_buf(&mut Vec::with_capacity(4096)).await?;
            if peer.ip() == tor {
                let refusal = "HTTP/1.1 403 Forbidden\r\nContent-Length: 8\r\n\r\nTor exit";
                stream.write_all(refusal.as_bytes()).await?;
                continue;
            }
            // It may become a block page yet: the client looks for a second.
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\nmem").await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            bridge.process.signal(Signal::SIGKILL);
            return anyhow::Ok(stream);
        }
    };
    let (fetched, stream) = tokio::join!(client.get_as("party.example", &url), origin);
    let (fetched, _open) = (fetched?, stream?);
    ensure!(fetched.exit_code != 0, "half an answer must not look whole: {fetched:?}");
    let html = page.html().await?;
    let notice =
        format!("<strong>{}</strong> (for party.example): the connection to exit bridge 1", addr.ip());
    ensure!(html.contains(&notice) && html.contains("was lost while it was in use"), "{html}");
    Ok(())
}

/// A browser sends what pages ask for to any port of this machine, also under a name of the page's own.
async fn says_nothing(lab: &Lab) -> anyhow::Result<()> {
    let client = lab.client().set("mode", "never").run().await?;
    for request in [
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: rebound.example\r\nOrigin: http://rebound.example\r\n\r\n",
        "POST /?u=http://a.example/ HTTP/1.1\r\nHost: rebound.example\r\nContent-Length: 3\r\n\r\nabc",
        "OPTIONS * HTTP/1.1\r\nHost: rebound.example\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: rebound.example\r\n\r\n",
        "NONSENSE\r\n\r\n",
        "GET / HTTP/1.1\r\nno header\r\n\r\n",
        &format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(20_000)),
    ] {
        let mut stream = TcpStream::connect(client.proxy).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let _end_or_reset =
            tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await?;
        ensure!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    // A program that was told of the wrong kind of proxy learns what to do, and still not which program this is.
    let args = ["--proxy", &format!("http://{}", client.proxy)];
    let hint = client.curl("http://example.com/", &args).await?;
    ensure!(hint.status == 405 && hint.text.contains("hint:") && !hint.text.contains("eebt"), "{hint:?}");
    Ok(())
}

async fn keeps_out(lab: &Lab) -> anyhow::Result<()> {
    let client = lab.client().set("mode", "never").run().await?;
    let page = Page::of(&client).await?;
    let (url, host) = (page.url.as_str(), page.host());
    let choose = format!("{url}choose");
    let port = host.rsplit(':').next().context("a port")?;
    let ours = format!("Origin: http://{host}");
    let form = ["-d", "host=evil.example", "-d", "way=exit-bridge"];
    let with = |more: &[&'static str]| [&form[..], more].concat();
    let rebound = format!("Host: rebound.example:{port}");
    let wrong = format!("http://{host}/{}/", "0".repeat(32));
    let no_token = format!("http://{host}/");

    // What must not be let in, and by which status.
    let attacks: Vec<(&str, &str, Vec<&str>, u16)> = vec![
        ("DNS rebinding", url, vec!["-H", &rebound], 403),
        ("rebinding without the port", url, vec!["-H", "Host: rebound.example"], 403),
        ("no Host", url, vec!["-0", "-H", "Host:"], 403),
        ("as a proxy", url, vec!["--request-target", "http://rebound.example/"], 403),
        ("no token", &no_token, vec![], 404),
        ("a wrong token", &wrong, vec![], 404),
        ("an image of another site", url, vec!["-H", "Sec-Fetch-Site: cross-site"], 403),
        ("another port of this machine", url, vec!["-H", "Sec-Fetch-Site: same-site"], 403),
        ("a form without Origin", &choose, with(&[]), 403),
        ("a form of another site", &choose, with(&["-H", "Origin: http://evil.example"]), 403),
        ("a form of another port", &choose, with(&["-H", "Origin: http://127.0.0.1:1"]), 403),
        ("a form in a sandbox", &choose, with(&["-H", "Origin: null"]), 403),
        (
            "a form in a sandbox, by a browser",
            &choose,
            with(&["-H", "Origin: null", "-H", "Sec-Fetch-Site: cross-site"]),
            403,
        ),
        ("another method", url, vec!["-X", "DELETE"], 405),
        ("a question of CORS", &choose, vec!["-X", "OPTIONS", "-H", "Origin: http://evil.example"], 405),
    ];
    for (attack, url, args, status) in attacks {
        let answer = curl(url, &args).await?;
        ensure!(answer.status == status, "{attack}: {}", answer.text);
        ensure!(!answer.text.contains(page.token()), "{attack}: the token is told");
        ensure!(!answer.text.to_lowercase().contains("access-control"), "{attack}: {}", answer.text);
        ensure!(answer.text.contains("default-src 'none'") && answer.text.contains("no-store"), "{attack}");
    }
    ensure!(curl(&wrong, &[]).await?.text.contains("--print-page"), "it says how to find the page");
    let seen_by_rebinding = curl(url, &["-H", &rebound]).await?.text;
    ensure!(!seen_by_rebinding.contains("eebt"), "a site need not know what this is: {seen_by_rebinding}");

    // What is let in and makes no sense.
    let too_long = format!("host={}", "a".repeat(8192));
    for (what, url, args, status) in [
        ("GET of a form's place", choose.as_str(), vec![], 405),
        ("too long", &choose, vec!["-H", &ours, "-d", &too_long], 413),
        ("JSON", &choose, vec!["-H", &ours, "-H", "Content-Type: application/json", "-d", "{}"], 415),
        ("a way that is none", &choose, vec!["-H", &ours, "-d", "host=a.example&way=direct"], 422),
        ("no host", &choose, vec!["-H", &ours, "-d", "way=tor"], 422),
        ("no such form", &format!("{url}shutdown"), vec!["-H", &ours, "-d", "x=1"], 404),
        ("HEAD", url, vec!["-I"], 200),
        ("by name", &url.replace("127.0.0.1", "localhost"), vec![], 200),
    ] {
        let answer = curl(url, &args).await?;
        ensure!(answer.status == status, "{what}: {}", answer.text);
    }
    let mut half = tokio::net::TcpStream::connect(host).await?;
    half.write_all(b"GET / HTTP/1.1\r\nHost").await?;
    let mut said = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), half.read_to_end(&mut said)).await;
    ensure!(closed.is_ok(), "half a request may stay for ever");
    let html = page.html().await?;
    ensure!(html.contains("You have chosen nothing yet") && !html.contains("evil.example"), "{html}");

    // The same by a real browser, whose headers are not ours to write.
    let mut browser = Chromium::start().await?;
    browser.open(&url.replace("127.0.0.1", "rebound.example")).await?;
    ensure!(browser.html().await?.contains("forbidden"), "{}", browser.html().await?);
    let attack = format!(
        "data:text/html,<form method=post action={choose}><input name=host value=evil.example>\
         <input name=way value=tor><button>x</button></form>"
    );
    browser.open(&attack).await?;
    browser.click("button").await?;
    ensure!(
        browser.url().await? == choose && browser.html().await?.contains("another site"),
        "{}",
        browser.html().await?
    );
    let frame = format!("data:text/html,<iframe src={url}></iframe><img src={url}style.css>");
    browser.open(&frame).await?;
    let framed = browser.accessibility().await?;
    ensure!(!framed.iter().any(|n| n.name == "Exit bridges"), "{framed:?}");
    ensure!(page.html().await?.contains("You have chosen nothing yet"));
    browser.open(url).await?;
    ensure!(browser.html().await?.contains("Your choices"), "the person's own browser is let in");
    Ok(())
}

async fn logs_nothing(lab: &Lab) -> anyhow::Result<()> {
    let bridges = [lab.bridge().run().await?, lab.bridge().run().await?];
    let client = bridges.iter().fold(lab.client(), |c, b| c.via(b)).log("trace").run().await?;
    let page = Page::of(&client).await?;
    let ip = lab.origins.open().addr().ip().to_string();
    client.get_as("planted-party.example", &lab.origins.open().url("/")).await?;
    client.get("http://planted-gone.example/").await?;
    for (action, fields) in [
        ("choose", &[("host", "planted-host.example"), ("way", "tor")][..]),
        ("choose", &[("host", "planted host"), ("way", "tor")]),
        ("another", &[("host", &ip), ("party", "planted-party.example")]),
        ("another", &[("host", "planted-gone.example")]),
        ("forget-verdict", &[("host", "planted-host.example"), ("port", "80")]),
    ] {
        page.send(action, fields).await?;
    }
    curl(&page.url, &["-H", "Host: planted-rebound.example"]).await?;
    curl(&format!("http://{}/planted-path", page.host()), &[]).await?;
    ensure!(page.html().await?.contains("planted-host.example"));
    let log = client.process.stderr();
    ensure!(log.contains("TRACE") && log.contains(&format!("local page: on {}", page.host())));
    for planted in ["planted", page.token(), &ip] {
        let found: Vec<&str> = log.lines().filter(|l| l.contains(planted)).take(3).collect();
        ensure!(found.is_empty(), "{planted:?}: {found:#?}");
    }
    let kept = client.dir.join("state/page.url");
    ensure!(std::fs::metadata(&kept)?.permissions().mode() & 0o777 == 0o600);
    let (dir, mut process) = (client.dir.clone(), client.process);
    process.signal(Signal::SIGTERM);
    process.exit_code(Duration::from_secs(10)).await?;
    ensure!(!kept.exists(), "the address is gone with the program");
    // Of the sites only the choice is left on disk.
    let found = Command::new("grep").args(["-rlI", "planted", "."]).current_dir(&dir).output().await?;
    ensure!(String::from_utf8(found.stdout)?.trim() == "./state/choices.json");
    Ok(())
}

async fn ports(lab: &Lab) -> anyhow::Result<()> {
    let never = || lab.client().set("mode", "never");
    let first = never().run().await?;
    let taken = Page::of(&first).await?;
    let error = match never().set("page", taken.host()).run().await {
        Ok(_) => anyhow::bail!("two on one port"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(error.contains("page: cannot listen on") && error.contains("hint: "), "{error}");
    let error = match never().set("page", "0.0.0.0:0").set("allow_remote", true).run().await {
        Ok(_) => anyhow::bail!("it can be reached from other machines"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(error.contains("page: must be on loopback"), "{error}");
    let off = never().set("page", "off").run().await?;
    let error = off.page().await.map(|_| ()).unwrap_err().to_string();
    ensure!(error.contains("no eebt-client with a local page") && error.contains("hint: "), "{error}");
    ensure!(!off.process.stderr().contains("local page:"), "{}", off.process.stderr());
    // The default port, twice: whoever comes second takes another one.
    let default = "127.0.0.1:9152";
    let (one, two) = (never().set("page", default).run().await?, never().set("page", default).run().await?);
    let hosts =
        BTreeSet::from([Page::of(&one).await?.host().to_owned(), Page::of(&two).await?.host().to_owned()]);
    ensure!(hosts.len() == 2, "{hosts:?}");
    ensure!(Page::of(&two).await?.html().await?.contains("Exit bridges"));
    Ok(())
}

async fn in_chromium(lab: &Lab) -> anyhow::Result<()> {
    let dns = Dns::start(lab.net.spare_ip()).await?;
    let (open, blocking) = (lab.origins.open(), lab.origins.blocking_tor_exits());
    let port = open.addr().port();
    for name in ["news.example.net", "static.news-cdn.example.net", "shop.example.net"] {
        dns.set(name, &[&open.addr().ip().to_string()]);
    }
    let resolver = vec![dns.addr().to_string()];
    let circuit = lab.bridge().set("resolver", resolver.clone()).run().await?;
    let onion = lab.bridge().onion().set("resolver", resolver).run().await?;
    let client = lab.client().via(&circuit).via(&onion).set("mode", "auto");
    let client = client.set("rules", vec!["*.example.net=exit-bridge"]).run().await?;
    let visit = async |party: &str, host: &str, path: &str| {
        let page = client.get_as(party, &format!("http://{host}:{port}{path}")).await?;
        ensure!(page.status == 200, "{host}: {page:?}");
        Ok(())
    };
    visit("news.example.net", "news.example.net", "/bulk/250000").await?;
    visit("news.example.net", "static.news-cdn.example.net", "/bulk/3000000").await?;
    visit("shop.example.net", "shop.example.net", "/").await?;
    ensure!(client.get(&blocking.url("/")).await?.status == 200);
    ensure!(client.get(&open.url("/")).await?.status == 200);
    let page = Page::of(&client).await?;
    page.send("choose", &[("host", "*.forum.example.org"), ("way", "exit-bridge")]).await?;

    let mut browser = Chromium::start().await?;
    browser.look(Look { width: 1100, dark: false }).await?;
    browser.open(&page.url).await?;

    // By mouse: the switch, and another exit bridge.
    let shop = |action: &str| format!("form[action={action}]:has(input[value='shop.example.net'])");
    browser.click(&format!("{} button[value=exit-bridge]", shop("choose"))).await?;
    ensure!(browser.url().await? == page.url, "the page itself, not the form's address");
    let html = browser.html().await?;
    ensure!(html.contains("shop.example.net is reached through an exit bridge from now on"), "{html}");
    ensure!(about(&html, "shop.example.net")?.contains("You chose an exit bridge."));
    let before = about(&html, "shop.example.net")?.contains("exit bridge 1</span>");
    browser.click(&format!("{} button", shop("another"))).await?;
    let html = browser.html().await?;
    let gets =
        if before { "shop.example.net gets exit bridge 2" } else { "shop.example.net gets exit bridge 1" };
    ensure!(html.contains(gets), "{html}");
    visit("shop.example.net", "shop.example.net", "/").await?;

    // By keyboard: the skip link comes first, and everything that can be pressed has a name of its own.
    browser.open(&page.url).await?;
    let mut stops = Vec::new();
    for _ in 0..60 {
        browser.press("Tab").await?;
        let Some(stop) = browser.focused().await? else { break };
        ensure!(!stop.name.is_empty(), "{stop:?} has no name, after {stops:?}");
        if stop.name == "Tor for news.example.net" {
            browser.enter().await?;
            break;
        }
        stops.push(stop.name);
    }
    ensure!(stops.first().is_some_and(|first| first == "Skip to sites"), "{stops:?}");
    let html = browser.html().await?;
    ensure!(
        html.contains("news.example.net is reached through Tor alone from now on"),
        "{html} after {stops:?}"
    );

    // As a screen reader is told.
    let tree = browser.accessibility().await?;
    let names =
        |role: &str| tree.iter().filter(|n| n.role == role).map(|n| n.name.as_str()).collect::<Vec<_>>();
    for role in ["banner", "main", "contentinfo", "navigation"] {
        ensure!(names(role).len() == 1, "{role}: {:?}", names(role));
    }
    for role in ["button", "textbox", "combobox", "link", "region", "table", "DisclosureTriangle"] {
        ensure!(names(role).iter().all(|name| !name.is_empty()), "{role}: {:?}", names(role));
    }
    let buttons = names("button");
    ensure!(
        buttons.len() > 10 && buttons.iter().collect::<BTreeSet<_>>().len() == buttons.len(),
        "{buttons:?}"
    );
    let switches =
        names("group").into_iter().filter(|name| name.starts_with("Way to ")).collect::<BTreeSet<_>>();
    ensure!(switches.len() == 5, "one for each site: {switches:?}");
    ensure!(names("columnheader").len() >= 10 && names("rowheader").len() >= 3, "the tables have heads");
    ensure!(names("textbox") == ["Site"] && names("combobox") == ["Way"]);
    ensure!(!names("heading").is_empty() && !names("status").is_empty());

    // As it looks.
    for (name, width, dark) in [
        ("page-light", 1100, false),
        ("page-dark", 1100, true),
        ("page-narrow", 320, false),
        ("page-narrow-dark", 320, true),
    ] {
        browser.look(Look { width, dark }).await?;
        browser.open(&page.url).await?;
        ensure!(browser.width().await? <= u64::from(width), "{name} has to be scrolled sideways");
        browser.picture(name).await?;
    }
    let foreign: Vec<_> =
        browser.requested.iter().filter(|u| !u.starts_with(&page.url) && *u != "about:blank").collect();
    ensure!(foreign.is_empty(), "asked elsewhere: {foreign:?}");
    ensure!(browser.requested.iter().any(|u| u.ends_with("/style.css")));
    ensure!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    Ok(())
}
