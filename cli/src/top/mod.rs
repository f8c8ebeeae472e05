//! `top`: what the containers use that have something attached. On a terminal a screen that follows them, elsewhere one table.
//!
//! `sample` (two answers of capsuled → what was used between them: pure) → `screen` (a frame of it: pure but for the terminal).

mod sample;
mod screen;

use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use capsule_proto::capsule::v1;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::sample::Sample;
use self::screen::{Order, Screen};
use crate::args::Output;
use crate::client::Client;
use crate::commands::Target;
use crate::error::Error;

/// Between two samples where only one table is printed.
const ONCE: Duration = Duration::from_secs(1);
/// How long a key may wait to be seen.
const PATIENCE: Duration = Duration::from_millis(100);

/// Shows what containers use.
///
/// # Errors
/// capsuled's; on a terminal they are shown there, and it is asked again.
pub async fn top(to: Target<'_>, every: Duration) -> Result<(), Error> {
    let client = to.connect().await?;
    let first = ask(&client).await?;
    if to.output == Output::Text && stdout().is_terminal() {
        return follow(to, client, first, every).await;
    }
    tokio::time::sleep(ONCE).await;
    let sample = Sample::between(&first, &ask(&client).await?);
    to.print(&sample, &sample)
}

async fn ask(client: &Client) -> Result<v1::ListUsageResponse, Error> {
    Ok(client.usage().list_usage(v1::ListUsageRequest {}).await?.into_inner())
}

async fn follow(
    to: Target<'_>,
    client: Client,
    first: v1::ListUsageResponse,
    every: Duration,
) -> Result<(), Error> {
    // A shell or session that ends it would have a terminal that echoes nothing.
    let mut ended = signal(SignalKind::terminate()).map_err(Error::Print)?;
    let mut terminal = ratatui::try_init().map_err(Error::Print)?;
    let followed = keep_following(&mut terminal, &mut ended, to, (client, first), every).await;
    // Also after an error: the terminal is the person's again.
    ratatui::restore();
    followed
}

async fn keep_following(
    terminal: &mut ratatui::DefaultTerminal,
    ended: &mut Signal,
    to: Target<'_>,
    (client, first): (Client, v1::ListUsageResponse),
    every: Duration,
) -> Result<(), Error> {
    let (mut client, mut last) = (Some(client), first);
    let mut screen = Screen::new(Sample::between(&last, &last));
    let mut asked = Instant::now();
    loop {
        terminal.draw(|frame| screen.draw(frame)).map_err(Error::Print)?;
        if event::poll(PATIENCE).map_err(Error::Print)? {
            match event::read().map_err(Error::Print)? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    let control = key.modifiers.contains(KeyModifiers::CONTROL);
                    match key.code {
                        KeyCode::Char('c') if control => return Ok(()),
                        KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                        KeyCode::Up | KeyCode::Char('k') => screen.select(-1),
                        KeyCode::Down | KeyCode::Char('j') => screen.select(1),
                        KeyCode::Char('c') => screen.sort(Order::Cpu),
                        KeyCode::Char('m') => screen.sort(Order::Memory),
                        KeyCode::Char('i') => screen.sort(Order::Io),
                        KeyCode::Char('n') => screen.sort(Order::Name),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        // The connection's own tasks run only here.
        tokio::select! {
            biased;
            _ = ended.recv() => return Ok(()),
            () = tokio::task::yield_now() => {}
        }
        if asked.elapsed() < every {
            continue;
        }
        asked = Instant::now();
        match refresh(to, &mut client).await {
            Ok(answer) => {
                screen.show(Sample::between(&last, &answer));
                last = answer;
            }
            // It may be away for a moment, as at an upgrade: asked again.
            Err(error) => {
                client = None;
                screen.fail(error.to_string());
            }
        }
    }
}

async fn refresh(to: Target<'_>, client: &mut Option<Client>) -> Result<v1::ListUsageResponse, Error> {
    let client = match client {
        Some(client) => client,
        none => none.insert(to.connect().await?),
    };
    ask(client).await
}
