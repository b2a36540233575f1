//! A headless Chromium, spoken to over pipes by the Chrome DevTools Protocol: real clicks and keys, the
//! accessibility tree, pictures. Pages can't run scripts in it, and it can reach this machine only.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Longest time for one answer.
const LIMIT: Duration = Duration::from_secs(30);

/// What it is started with.
const FLAGS: &[&str] = &[
    "--headless=new",
    "--no-sandbox", // tests run as root
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-sync",
    "--hide-scrollbars",
    "--mute-audio",
    // A name that leads to this machine, as one does after DNS rebinding; no other name leads anywhere.
    "--host-resolver-rules=MAP rebound.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--remote-debugging-pipe",
    "about:blank",
];

/// A Chromium with one tab.
pub struct Chromium {
    _process: Child,
    _dir: TempDir,
    to: pipe::Sender,
    from: BufReader<pipe::Receiver>,
    sent: u64,
    session: Option<String>,
    events: VecDeque<Value>,
    /// All addresses that it asked for.
    pub requested: Vec<String>,
    /// What it complained about, such as breaches of a page's security policy.
    pub complaints: Vec<String>,
}

/// How a page is looked at.
#[derive(Clone, Copy)]
pub struct Look {
    /// Width of the window, in CSS pixels.
    pub width: u32,
    /// Whether the person likes it dark.
    pub dark: bool,
}

/// A node of the accessibility tree.
#[derive(Debug)]
pub struct Node {
    /// Its role.
    pub role: String,
    /// Its name.
    pub name: String,
}

impl Chromium {
    /// Starts it.
    pub async fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let pipes = [dir.path().join("to"), dir.path().join("from")];
        for path in &pipes {
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)?;
        }
        // Opened both ways, so that neither side waits for the other one.
        let open = || {
            let mut options = pipe::OpenOptions::new();
            options.read_write(true);
            options
        };
        let to = open().open_sender(&pipes[0])?;
        let from = open().open_receiver(&pipes[1])?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let process = Command::new("bash")
            .args(["-c", "exec 3<\"$1\" 4>\"$2\"; shift 2; exec chromium \"$@\"", "bash"])
            .args(&pipes)
            .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
            .args(FLAGS)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("chromium: `make e2e` installs it")?;
        let mut this = Self {
            _process: process,
            _dir: dir,
            to,
            from: BufReader::new(from),
            sent: 0,
            session: None,
            events: VecDeque::new(),
            requested: Vec::new(),
            complaints: Vec::new(),
        };
        let target = this.call("Target.createTarget", json!({"url": "about:blank"})).await?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = this.call("Target.attachToTarget", attach).await?;
        this.session = attached["sessionId"].as_str().map(String::from);
        for domain in ["Page", "DOM", "Network", "Log", "Accessibility"] {
            this.call(&format!("{domain}.enable"), json!({})).await?;
        }
        this.call("Emulation.setScriptExecutionDisabled", json!({"value": true})).await?;
        Ok(this)
    }

    /// One command, and its result.
    pub async fn call(&mut self, method: &str, params: Value) -> anyhow::Result<Value> {
        self.sent += 1;
        let id = self.sent;
        let mut command = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        let mut bytes = serde_json::to_vec(&command)?;
        bytes.push(0);
        self.to.write_all(&bytes).await?;
        loop {
            let message = self.message().await.context(method.to_owned())?;
            if message["id"] == id {
                ensure!(message["error"].is_null(), "{method}: {}", message["error"]);
                return Ok(message["result"].clone());
            }
        }
    }

    /// The next message; those that are no answers are kept.
    async fn message(&mut self) -> anyhow::Result<Value> {
        let mut bytes = Vec::new();
        timeout(LIMIT, self.from.read_until(0, &mut bytes)).await.context("chromium does not answer")??;
        bytes.pop();
        let message: Value = serde_json::from_slice(&bytes).context("not what DevTools say")?;
        match message["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                self.requested.extend(message["params"]["request"]["url"].as_str().map(String::from));
            }
            Some("Log.entryAdded") => self.complaints.push(message["params"]["entry"]["text"].to_string()),
            Some(_) => self.events.push_back(message.clone()),
            None => {}
        }
        Ok(message)
    }

    /// Waits until the next page has been loaded.
    async fn loaded(&mut self) -> anyhow::Result<()> {
        loop {
            while let Some(event) = self.events.pop_front() {
                if event["method"] == "Page.loadEventFired" {
                    return Ok(());
                }
            }
            self.message().await?;
        }
    }

    /// Opens a page.
    pub async fn open(&mut self, url: &str) -> anyhow::Result<()> {
        self.events.clear();
        self.call("Page.navigate", json!({"url": url})).await?;
        self.loaded().await
    }

    /// The page as it was understood.
    pub async fn html(&mut self) -> anyhow::Result<String> {
        let node = self.node("html").await?;
        let html = self.call("DOM.getOuterHTML", json!({"nodeId": node})).await?;
        Ok(html["outerHTML"].as_str().unwrap_or_default().to_owned())
    }

    /// The address of the page.
    pub async fn url(&mut self) -> anyhow::Result<String> {
        let tree = self.call("Page.getFrameTree", json!({})).await?;
        Ok(tree["frameTree"]["frame"]["url"].as_str().unwrap_or_default().to_owned())
    }

    async fn node(&mut self, selector: &str) -> anyhow::Result<Value> {
        let document = self.call("DOM.getDocument", json!({})).await?;
        let ask = json!({"nodeId": document["root"]["nodeId"], "selector": selector});
        let found = self.call("DOM.querySelector", ask).await?;
        ensure!(found["nodeId"] != 0, "nothing is {selector}");
        Ok(found["nodeId"].clone())
    }

    /// Clicks on what is `selector`, and waits for the page that comes of it.
    pub async fn click(&mut self, selector: &str) -> anyhow::Result<()> {
        self.tick(selector).await?;
        self.loaded().await
    }

    /// Clicks on what leads to no other page, such as a box to be ticked.
    pub async fn tick(&mut self, selector: &str) -> anyhow::Result<()> {
        let node = self.node(selector).await?;
        self.call("DOM.scrollIntoViewIfNeeded", json!({"nodeId": node})).await?;
        let quads = self.call("DOM.getContentQuads", json!({"nodeId": node})).await?;
        let quad: Vec<f64> =
            serde_json::from_value(quads["quads"][0].clone()).context("it is not to be seen")?;
        let (x, y) = ((quad[0] + quad[4]) / 2.0, (quad[1] + quad[5]) / 2.0);
        self.events.clear();
        for kind in ["mousePressed", "mouseReleased"] {
            let click = json!({"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", click).await?;
        }
        Ok(())
    }

    /// Presses and releases a key: `Tab`, or `Enter`.
    pub async fn press(&mut self, key: &str) -> anyhow::Result<()> {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            other => bail!("{other} is not known here"),
        };
        let mut event = json!({"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code});
        if !text.is_empty() {
            event["text"] = text.into();
        }
        self.events.clear();
        self.call("Input.dispatchKeyEvent", event.clone()).await?;
        event["type"] = "keyUp".into();
        self.call("Input.dispatchKeyEvent", event).await?;
        Ok(())
    }

    /// Presses Enter, and waits for the page that comes of it.
    pub async fn enter(&mut self) -> anyhow::Result<()> {
        self.press("Enter").await?;
        self.loaded().await
    }

    /// Looks at pages in another way from now on.
    pub async fn look(&mut self, look: Look) -> anyhow::Result<()> {
        let metrics = json!({"width": look.width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", metrics).await?;
        let scheme = if look.dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", media).await?;
        Ok(())
    }

    /// How wide the page is, in CSS pixels: wider than the window where it has to be scrolled.
    pub async fn width(&mut self) -> anyhow::Result<u64> {
        let metrics = self.call("Page.getLayoutMetrics", json!({})).await?;
        metrics["cssContentSize"]["width"].as_f64().map(|w| w.ceil() as u64).context("no width")
    }

    /// A picture of the whole page, as `target/screenshots/NAME.png`.
    pub async fn picture(&mut self, name: &str) -> anyhow::Result<PathBuf> {
        let shot = json!({"format": "png", "captureBeyondViewport": true});
        let shot = self.call("Page.captureScreenshot", shot).await?;
        let bytes = data_encoding::BASE64.decode(shot["data"].as_str().unwrap_or_default().as_bytes())?;
        ensure!(bytes.len() > 10_000, "an empty picture: {} bytes", bytes.len());
        let exe = std::env::current_exe()?;
        let dir = exe.ancestors().nth(3).unwrap_or(Path::new(".")).join("screenshots");
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{name}.png"));
        std::fs::write(&path, bytes)?;
        Ok(path)
    }

    /// What a screen reader is told.
    pub async fn accessibility(&mut self) -> anyhow::Result<Vec<Node>> {
        let tree = self.call("Accessibility.getFullAXTree", json!({})).await?;
        let nodes = tree["nodes"].as_array().context("no tree")?;
        Ok(nodes.iter().filter(|n| n["ignored"] == false).map(node).collect())
    }

    /// What has the focus.
    pub async fn focused(&mut self) -> anyhow::Result<Option<Node>> {
        let tree = self.call("Accessibility.getFullAXTree", json!({})).await?;
        let nodes = tree["nodes"].as_array().context("no tree")?;
        let has_focus = |n: &&Value| {
            let properties = n["properties"].as_array();
            properties.into_iter().flatten().any(|p| p["name"] == "focused" && p["value"]["value"] == true)
        };
        Ok(nodes.iter().filter(|n| n["role"]["value"] != "RootWebArea").find(has_focus).map(node))
    }
}

fn node(node: &Value) -> Node {
    let text = |key: &str| node[key]["value"].as_str().unwrap_or_default().to_owned();
    Node { role: text("role"), name: text("name") }
}
