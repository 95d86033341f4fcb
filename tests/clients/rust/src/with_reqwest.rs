use futures::StreamExt;
use reqwest_eventsource::{Error, Event, EventSource};

// A status or a content type that it does not expect ends it; everything else it comes back from.
pub async fn follow(url: &str, cursor: &str, show: impl Fn(&str, &str, &str)) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let request = reqwest::Client::new().get(format!("{url}?last_event_id={cursor}"));
    let mut events = EventSource::new(request)?;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Open) => {}
            Ok(Event::Message(message)) => {
                show(&message.id, &message.event, &message.data);
                if super::is_terminal(&message.event) {
                    events.close();
                    return Ok(());
                }
            }
            Err(Error::InvalidStatusCode(status, _)) => return Err(format!("status {status}").into()),
            Err(Error::InvalidContentType(..)) => return Err("no stream".into()),
            Err(_) => {}
        }
    }
    Ok(())
}
