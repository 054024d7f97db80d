//! `top`: live view of the fleet.

use std::path::Path;
use std::time::{Duration, Instant};

use console::{Term, style};
use serde::Serialize;

use gravwell_model::Seq;
use gravwell_model::codec::admin::{MemberInfo, PresenceInfo, Request, Status};
use gravwell_model::codec::health::Level;
use gravwell_model::codec::json_lines::timestamp;
use gravwell_model::printable::escape;

use crate::client::Client;
use crate::client::output::{Output, or_dash, size};
use crate::error::{CtlError, CtlResult};
use crate::process::signals::stop_signal;

/// Show a live view of the datastore and its members.
///
/// Shows the position, lag, outbox and health of each member.
#[derive(Debug, clap::Args)]
pub struct Top {
    /// Print the view once and exit.
    #[arg(long)]
    pub once: bool,
    /// Seconds between updates.
    #[arg(long, default_value_t = 2, value_name = "S", conflicts_with = "once")]
    pub interval: u64,
}

/// State of the fleet at one point in time.
#[derive(Debug, Serialize)]
struct View {
    time: String,
    datastore: Status,
    /// Transactions per second since the previous view; `None` for the first.
    rate: Option<f64>,
    members: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    role: String,
    /// `good`, `away`, the state of a member that is not enrolled, or a health problem.
    health: String,
    external_addr: Option<String>,
    applied: Option<Seq>,
    lag_ops: Option<u64>,
    outbox: Option<u64>,
    rejected: Option<u64>,
    software: String,
    holds_floor: bool,
}

/// Shows the view until interrupted, or once with `--once`.
pub(super) async fn run(dir: &Path, json: bool, args: Top) -> CtlResult {
    let client = Client::open(dir).await?;
    let term = Term::stdout();
    if args.once {
        let view = look(&client, None).await;
        client.close().await;
        return print(json, &view?, None);
    }
    let live = (!json && term.is_term()).then_some(&term);
    let shown = show(&client, json, live, Duration::from_secs(args.interval.max(1))).await;
    if let Some(term) = live {
        let _ = term.show_cursor();
    }
    client.close().await;
    shown
}

async fn show(client: &Client, json: bool, live: Option<&Term>, interval: Duration) -> CtlResult {
    let mut stop = std::pin::pin!(stop_signal());
    let mut last: Option<(Instant, Seq)> = None;
    if let Some(term) = live {
        let _ = term.hide_cursor();
        let _ = term.clear_screen();
    }
    loop {
        let view = look(client, last).await?;
        last = Some((Instant::now(), view.datastore.head));
        print(json, &view, live)?;
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = tokio::time::sleep(interval) => {}
        }
    }
}

async fn look(client: &Client, last: Option<(Instant, Seq)>) -> Result<View, CtlError> {
    let datastore = client.status().await?;
    if datastore.role != "datastore" {
        return Err(CtlError::new("this is a replica; use the --data-dir of the datastore or an administrator"));
    }
    let members: Vec<MemberInfo> = client.items(&Request::Members).await?;
    let presence: Vec<PresenceInfo> = client.items(&Request::Presence).await?;
    #[expect(clippy::cast_precision_loss, reason = "a rate for display")]
    let rate = last.map(|(then, head)| datastore.head.since(head) as f64 / then.elapsed().as_secs_f64().max(0.001));
    let members = members
        .iter()
        .filter(|member| ["webserver", "reader"].contains(&member.role.as_str()))
        .map(|member| row(member, &presence))
        .collect();
    let time = timestamp(gravwell_env::Clock::now_ms(&gravwell_env::SystemClock));
    Ok(View { time, datastore, rate, members })
}

fn row(member: &MemberInfo, presence: &[PresenceInfo]) -> Row {
    let present = presence.iter().find(|present| present.name == member.name);
    let health = match present {
        _ if member.state != "enrolled" => member.state.clone(),
        None => "away".to_owned(),
        Some(present) => present.unhealthy.clone().unwrap_or_else(|| "good".into()),
    };
    let external = present.and_then(|present| present.external_addr.clone());
    Row {
        name: member.name.clone(),
        role: member.role.clone(),
        health,
        external_addr: external.or_else(|| member.external_addr.clone()),
        applied: member.applied,
        lag_ops: member.lag_ops,
        outbox: present.map(|present| present.outbox),
        rejected: present.map(|present| present.rejected),
        software: present.map(|present| present.software.clone()).unwrap_or_default(),
        holds_floor: member.counts,
    }
}

fn print(json: bool, view: &View, live: Option<&Term>) -> CtlResult {
    let mut output = Output::new();
    if json {
        output.json(view)?;
        return output.flush();
    }
    if let Some(term) = live {
        // Overwriting instead of clearing avoids flicker.
        let _ = term.move_cursor_to(0, 0);
    }
    let width = live.map_or(usize::MAX, |term| usize::from(term.size().1));
    for line in lines(view) {
        let line = console::truncate_str(&line, width, "…");
        let end = if live.is_some() { "\x1b[K" } else { "" };
        output.raw_line(&format!("{line}{end}"))?;
    }
    if live.is_some() {
        output.bytes(b"\x1b[J")?;
    }
    output.flush()
}

fn lines(view: &View) -> Vec<String> {
    let View { time, datastore, rate, members } = view;
    let health = match datastore.health.level {
        Level::Good => style("good".to_owned()).green(),
        Level::Attention => style(escape(&datastore.health.summary()).into_owned()).yellow(),
        Level::Failed => style(escape(&datastore.health.summary()).into_owned()).red(),
    };
    let rate = rate.map_or_else(String::new, |rate| format!(", {rate:.1} transactions/s"));
    let Status { head, horizon, floor, subscribers, objects, log_bytes, disk_free_bytes, .. } = datastore;
    let heading = format!(
        "{:<16} {:<10} {:>10} {:>8} {:>7} {:>8}  {:<10} EXTERNAL",
        "NAME", "ROLE", "APPLIED", "LAG", "OUTBOX", "REJECTED", "HEALTH"
    );
    let mut lines = vec![
        format!("{time}  datastore {} ({}): {health}", datastore.address, datastore.version),
        format!("head {head}, horizon {horizon}, floor {floor}{rate}; {subscribers} connected, {objects} objects"),
        format!("log {}, free {}", size(*log_bytes), size(*disk_free_bytes)),
        String::new(),
        style(heading).bold().to_string(),
    ];
    for row in members {
        let padded = format!("{:<10}", escape(&row.health));
        let health = match row.health.as_str() {
            "good" => style(padded).green(),
            "away" => style(padded).yellow(),
            _ => style(padded).red(),
        };
        lines.push(format!(
            "{:<16} {:<10} {:>10} {:>8} {:>7} {:>8}  {health} {}",
            row.name,
            row.role,
            or_dash(row.applied),
            or_dash(row.lag_ops),
            or_dash(row.outbox),
            or_dash(row.rejected),
            or_dash(row.external_addr.as_deref().map(escape)),
        ));
    }
    lines
}
