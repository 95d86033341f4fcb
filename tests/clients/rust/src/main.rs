// Runs Rust clients on cases: `drive cases.json`; see npm/drive.mjs, which does the same for JavaScript.
use futures::future::join_all;
use serde_json::{Value, json};

mod launchdarkly;
mod with_reqwest;

#[derive(serde::Deserialize)]
struct Case {
    client: String,
    case: String,
    url: String,
    cursor: String,
}

#[tokio::main]
async fn main() {
    let file = std::fs::read(std::env::args().nth(1).unwrap()).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&file).unwrap();
    join_all(cases.into_iter().map(|one| tokio::spawn(drive(one)))).await;
}

async fn drive(one: Case) {
    let write = |line: Value| println!("{line}");
    let show = |id: &str, kind: &str, data: &str| write(json!({"case": one.case, "id": id, "kind": kind, "data": data}));
    let ended = match one.client.as_str() {
        "reqwest-eventsource" => with_reqwest::follow(&one.url, &one.cursor, show).await,
        _ => launchdarkly::follow(&one.url, &one.cursor, show).await,
    };
    match ended {
        Ok(()) => write(json!({"case": one.case, "how": "ended"})),
        Err(error) => write(json!({"case": one.case, "failed": error.to_string()})),
    }
}

pub fn is_terminal(kind: &str) -> bool {
    matches!(kind, "done" | "error" | "cancelled")
}
