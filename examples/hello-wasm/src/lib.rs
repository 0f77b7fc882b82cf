//! The smallest app: a component that exports `wasi:http/incoming-handler`.
//!
//! ```text
//! GET /           hello from /
//! GET /headers    every header that reached the app, one a line
//! ```

use std::io::Write as _;

use wasi::exports::http::incoming_handler::Guest;
use wasi::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

struct Hello;

wasi::http::proxy::export!(Hello);

impl Guest for Hello {
    /// Called once for every request, each time in a fresh instance with its own memory.
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_else(|| "/".to_owned());
        println!("{:?} {path}", request.method()); // shown by `tcli logs`
        let text = match path.as_str() {
            "/headers" => headers(&request),
            _ => {
                let greeting = std::env::var("GREETING").unwrap_or_else(|_| "hello".to_owned());
                format!("{greeting} from {path}\n")
            }
        };
        respond(out, text.as_bytes());
    }
}

/// The request's headers as the app sees them: the caller's token and the platform's own cookies
/// never get here.
fn headers(request: &IncomingRequest) -> String {
    let mut text = String::new();
    for (name, value) in request.headers().entries() {
        text += &format!("{name}: {}\n", String::from_utf8_lossy(&value));
    }
    text
}

/// Sends the head first and the body after it: the body is a stream.
fn respond(out: ResponseOutparam, content: &[u8]) {
    let headers = Fields::new();
    headers
        .set("content-type", &[b"text/plain; charset=utf-8".to_vec()])
        .expect("this header is allowed");
    let response = OutgoingResponse::new(headers);
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(response));

    let mut stream = body.write().expect("the stream is taken once");
    if stream.write_all(content).is_err() {
        return; // The caller has gone.
    }
    drop(stream);
    // Fails only if the caller has gone.
    let _ = OutgoingBody::finish(body, None);
}
