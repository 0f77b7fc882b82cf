//! A command in the app's container: its output in pieces, and its end with that of whoever wants it.

use bytes::Bytes;
use tabbify_api::attach::{CommandLine, PIECE_LEN_MAX, Piece};
use tabbify_container::{Container, Enter, RunningHandle, Stream};
use tabbify_process::{Importance, Tasks, chain};
use tokio::sync::mpsc;

/// Runs it; its exit code.
///
/// # Errors
/// Why it was not run.
pub(super) async fn run(
    container: &Container,
    command: Vec<String>,
    enter: Option<&Enter>,
    output: mpsc::Sender<CommandLine>,
    tasks: &Tasks,
) -> Result<i64, String> {
    let started = container.start_command(&command, enter).await;
    let running = started.map_err(|error| chain(&error).to_string())?;
    let mut killing = Killing {
        command: Some(running.handle()),
        tasks: tasks.clone(),
    };
    let following = running.follow(|stream, message| pass(output.clone(), stream, message));
    tokio::select! {
        ended = following => {
            killing.command = None;
            ended.map_err(|error| chain(&error).to_string())
        }
        () = output.closed() => Err("nobody wants to know what it prints any more".to_owned()),
    }
}

async fn pass(output: mpsc::Sender<CommandLine>, stream: Stream, message: Bytes) {
    for piece in message.chunks(PIECE_LEN_MAX) {
        let piece = Piece(piece.to_vec());
        let line = match stream {
            Stream::Stdout => CommandLine::Stdout(piece),
            Stream::Stderr => CommandLine::Stderr(piece),
        };
        if output.send(line).await.is_err() {
            // It has left: the command is about to be ended.
            return;
        }
    }
}

/// Ends the command when it is dropped, if that has not ended by itself.
struct Killing {
    command: Option<RunningHandle>,
    tasks: Tasks,
}

impl Drop for Killing {
    fn drop(&mut self) {
        if let Some(command) = self.command.take() {
            self.tasks
                .spawn("command end", Importance::Detached, async move {
                    command.kill().await;
                });
        }
    }
}
