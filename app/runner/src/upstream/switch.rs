//! Connections that become another protocol's, such as WebSocket: bytes pass both ways until either side
//! has ended its own, as RFC 9110, section 7.8 has them agree.

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tabbify_http::wanted_upgrade;
use tabbify_process::{Importance, Tasks, chain};
use tokio::io::copy_bidirectional_with_sizes;

use crate::runtime::Body;
use crate::traffic::Permit;

/// Bytes that wait in each direction.
const BUFFER_LEN: usize = 16 * 1024;

/// The protocol that a caller wants to change to, and its connection once it may.
pub(super) fn wanted(request: &mut Request<Body>) -> Option<(HeaderValue, OnUpgrade)> {
    let protocol = wanted_upgrade(request.headers())?;
    // A caller whose connection cannot change, over HTTP/2 or in a test, is answered as if it had not asked.
    let caller = request.extensions_mut().remove::<OnUpgrade>()?;
    Some((protocol, caller))
}

/// The answer that lets both change, after which bytes pass. It counts as being served until it has ended.
pub(super) fn through(
    mut response: Response<Incoming>,
    caller: OnUpgrade,
    permit: Permit,
    tasks: &Tasks,
) -> Response<Body> {
    let app = hyper::upgrade::on(&mut response);
    tasks.spawn("upgraded", Importance::Detached, async move {
        let joined = tokio::try_join!(caller, app);
        let (caller, app) = match joined {
            Ok(joined) => joined,
            Err(error) => {
                tracing::debug!(error = %chain(&error), "a connection did not change its protocol");
                return;
            }
        };
        let (mut caller, mut app) = (TokioIo::new(caller), TokioIo::new(app));
        let passed =
            copy_bidirectional_with_sizes(&mut caller, &mut app, BUFFER_LEN, BUFFER_LEN).await;
        if let Err(error) = passed {
            tracing::debug!(%error, "a connection of another protocol ended early");
        }
        drop(permit);
    });
    let (mut head, _) = response.into_parts();
    let protocol = head.headers.get(UPGRADE).cloned();
    super::remove_hop_by_hop(&mut head.headers);
    head.headers
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        head.headers.insert(UPGRADE, protocol);
    }
    let empty = Empty::<Bytes>::new().map_err(|never| match never {});
    Response::from_parts(head, empty.boxed_unsync())
}
