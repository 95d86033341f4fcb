use eventsource_client::{Client, ClientBuilder, Error, ReconnectOptions, SSE};
use futures::TryStreamExt;
use launchdarkly_sdk_transport::HyperTransport;

pub async fn follow(url: &str, cursor: &str, show: impl Fn(&str, &str, &str)) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let comes_back = ReconnectOptions::reconnect(true).retry_initial(true).build(); // else a first failure ends it
    let client = ClientBuilder::for_url(url)?.last_event_id(cursor.to_string()).reconnect(comes_back);
    let client = client.build_with_transport(HyperTransport::new()?);
    let mut events = client.stream();
    let mut last = cursor.to_string();
    loop {
        match events.try_next().await {
            Ok(Some(SSE::Event(event))) => {
                if let Some(id) = &event.id {
                    last = id.clone();
                }
                show(&last, &event.event_type, &event.data);
                if super::is_terminal(&event.event_type) {
                    return Ok(());
                }
            }
            // It takes a 204 for a stream that was closed at once, and would ask for ever.
            Ok(Some(SSE::Connected(details))) if details.response().status() == 204 => return Ok(()),
            Ok(Some(_)) => {}
            Ok(None) => return Err("it gave up".into()),
            Err(Error::UnexpectedResponse(response, _)) => return Err(format!("status {}", response.status()).into()),
            Err(_) => {}
        }
    }
}
