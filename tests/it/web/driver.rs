//! Real browsers: headless Chromium, controlled through the WebDriver protocol, which is JSON over HTTP.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};

use super::client::Client;

/// Timeout of waits on a page.
const PATIENCE: Duration = Duration::from_secs(60);
/// Key of an element reference in the protocol.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// The chromedriver process.
pub struct Driver {
    process: Child,
    client: Client,
}

impl Driver {
    /// Starts chromedriver; returns `None` and prints a message if there is no browser.
    pub fn start() -> Option<Driver> {
        let (Some(driver), Some(_)) = (program("chromedriver"), program("chromium")) else {
            assert!(!crate::fleet::tools_are_required(), "chromium or chromedriver is not installed");
            eprintln!("SKIPPED: Chromium is missing; install the packages chromium and chromium-driver");
            return None;
        };
        let mut process = Command::new(driver)
            .args(["--port=0", "--log-level=SEVERE"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(process.stdout.take().expect("output")).lines();
        let port = loop {
            let line = lines.next().expect("chromedriver prints its port").expect("reads");
            if let Some((_, rest)) = line.split_once("started successfully on port ") {
                break rest.trim_end_matches('.').to_owned();
            }
        };
        // Later output must be drained.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Driver { process, client: Client::new(format!("http://127.0.0.1:{port}")) })
    }

    /// Opens a separate browser with a new profile.
    pub fn browser(&self, profile: &Path) -> Browser {
        let profile = format!("--user-data-dir={}", profile.display());
        let options = json!({ "args": [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900",
            profile,
        ] });
        let wanted =
            json!({ "browserName": "chrome", "goog:chromeOptions": options, "unhandledPromptBehavior": "accept" });
        let answer = self.client.post("/session", &json!({ "capabilities": { "alwaysMatch": wanted } }));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let session = answer.json()["value"]["sessionId"].as_str().expect("a session").to_owned();
        Browser { client: self.client.clone(), session }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A browser with one page.
pub struct Browser {
    client: Client,
    session: String,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // A browser outlives its driver, so it must be closed explicitly.
        self.client.try_delete(&format!("/session/{}", self.session));
    }
}

impl Browser {
    fn send(&self, path: &str, body: &Value) -> Result<Value, String> {
        let answer = self.client.post(&format!("/session/{}/{path}", self.session), body);
        if answer.status == 200 { Ok(answer.json()["value"].clone()) } else { Err(answer.text()) }
    }

    #[track_caller]
    pub fn open(&self, address: &str) {
        self.send("url", &json!({ "url": address })).unwrap_or_else(|error| panic!("{address}: {error}"));
    }

    /// Runs a script in the page, under its strict security policy.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        let body = json!({ "script": script, "args": [] });
        self.send("execute/sync", &body).unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    fn find(&self, selector: &str) -> Result<String, String> {
        let found = self.send("element", &json!({ "using": "css selector", "value": selector }))?;
        found[ELEMENT].as_str().map(str::to_owned).ok_or_else(|| format!("{found}"))
    }

    /// Repeats an attempt until it succeeds.
    #[track_caller]
    fn insist<T>(&self, what: &str, attempt: impl Fn() -> Result<T, String>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            match attempt() {
                Ok(done) => return done,
                Err(error) if Instant::now() > until => panic!("{what}: {error}\n\nThe page:\n{}", self.text("body")),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Clicks the selected element as soon as it can be clicked.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        self.insist(&format!("click {selector}"), || {
            let element = self.find(selector)?;
            self.send(&format!("element/{element}/click"), &json!({})).map(drop)
        });
    }

    /// Types into a field, replacing its content.
    #[track_caller]
    pub fn fill(&self, selector: &str, text: &str) {
        self.insist(&format!("fill {selector}"), || {
            let element = self.find(selector)?;
            self.send(&format!("element/{element}/clear"), &json!({}))?;
            self.send(&format!("element/{element}/value"), &json!({ "text": text })).map(drop)
        });
    }

    /// Selects a file.
    #[track_caller]
    pub fn attach(&self, selector: &str, file: &Path) {
        let file = file.to_str().expect("path");
        self.insist(&format!("attach {file} to {selector}"), || {
            let element = self.find(selector)?;
            self.send(&format!("element/{element}/value"), &json!({ "text": file })).map(drop)
        });
    }

    /// Returns the visible text of an element, empty if there is none.
    pub fn text(&self, selector: &str) -> String {
        let script = format!("return document.querySelector({})?.innerText ?? ''", json!(selector));
        self.run(&script).as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub fn sees(&self, selector: &str, text: &str) {
        self.insist(&format!("{selector} contains {text:?}"), || {
            let found = self.find(selector).map(|_| self.text(selector))?;
            if found.contains(text) { Ok(()) } else { Err(format!("it contains {found:?}")) }
        });
    }

    /// Waits until no element matches the selector.
    #[track_caller]
    pub fn misses(&self, selector: &str) {
        self.insist(&format!("{selector} disappears"), || match self.find(selector) {
            Ok(_) => Err("it still exists".to_owned()),
            Err(_) => Ok(()),
        });
    }

    /// Navigates to another page of the interface without reloading.
    #[track_caller]
    pub fn go(&self, place: &str) {
        self.run(&format!("location.hash = {}", json!(format!("#{place}"))));
    }

    pub fn resize(&self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        let body = json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": metrics });
        self.send("goog/cdp/execute", &body).expect("resizes");
    }

    /// Takes a screenshot of the whole page, as PNG.
    pub fn picture(&self) -> Vec<u8> {
        let params = json!({ "captureBeyondViewport": true });
        let body = json!({ "cmd": "Page.captureScreenshot", "params": params });
        let answer = self.send("goog/cdp/execute", &body).expect("takes a screenshot");
        let data = answer["data"].as_str().expect("data");
        base64::engine::general_purpose::STANDARD.decode(data).expect("base64")
    }

    /// Returns the errors that the page logged, except rejected requests, which are not errors of the page.
    pub fn complaints(&self) -> Vec<String> {
        let entries = self.send("se/log", &json!({ "type": "browser" })).expect("a log");
        let messages = entries.as_array().into_iter().flatten().filter(|entry| entry["level"] == "SEVERE");
        let messages = messages.map(|entry| entry["message"].to_string());
        messages.filter(|message| !message.contains("Failed to load resource")).collect()
    }
}
