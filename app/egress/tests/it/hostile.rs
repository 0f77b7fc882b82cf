//! Programs that send anything at all.

use std::sync::Arc;

use proptest::prelude::*;
use tabbify_egress::{Guard, Nobody, Proxy, Rules};
use tabbify_process::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{Lines, WATCHDOG};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    /// The proxy answers or closes, whatever comes, and nothing of it is left.
    #[test]
    fn any_bytes(start in prop_oneof![
        Just(String::new()), Just("GET http://".to_owned()), Just("CONNECT ".to_owned()),
        Just("POST http://127.0.0.1/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()),
    ], bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let tasks = Tasks::new();
            let guard = Guard::new(Rules::parse(&["127.0.0.1"]).unwrap());
            let proxy = Proxy::new(guard, Arc::new(Nobody), Arc::new(Lines::default()), &tasks);
            let (mut here, there) = tokio::io::duplex(1 << 16);
            let serving = proxy.connection(there);
            let asking = async {
                here.write_all(start.as_bytes()).await.unwrap();
                // It may have closed by now.
                drop(here.write_all(&bytes).await);
                drop(here.shutdown().await);
                let mut said = Vec::new();
                drop(here.read_to_end(&mut said).await);
                said
            };
            let both = async { tokio::join!(serving, asking) };
            let (_, said) = tokio::time::timeout(WATCHDOG, both).await.unwrap();
            assert!(said.is_empty() || said.starts_with(b"HTTP/1."), "{said:?}");
        });
    }
}
