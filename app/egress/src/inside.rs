//! What the proxy is given by whoever runs the app: the way to other apps, and to the app's log.

use std::fmt;

use http::HeaderMap;
use tabbify_api::BoxFuture;
use tabbify_process::connect::Stream;

/// The way to other apps, by names that end in `.internal`. Rules do not concern it: policy does.
pub trait Inside: Send + Sync + fmt::Debug {
    /// A connection to another app, or why there is none.
    fn dial<'a>(
        &'a self,
        name: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, String>>;

    /// Makes the headers of a request to another app say who calls, and nothing that is the platform's to say.
    fn mark(&self, headers: &mut HeaderMap);
}

/// Where lines for the app's people go.
pub trait Tell: Send + Sync + fmt::Debug {
    /// Adds a line. May wait for room.
    fn tell<'a>(&'a self, line: &'a str) -> BoxFuture<'a, ()>;
}

/// No way to any other app.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nobody;

impl Inside for Nobody {
    fn dial<'a>(&'a self, _: &'a str, _: u16) -> BoxFuture<'a, Result<Box<dyn Stream>, String>> {
        Box::pin(async { Err("there is no way to other apps here".to_owned()) })
    }

    fn mark(&self, _: &mut HeaderMap) {}
}
