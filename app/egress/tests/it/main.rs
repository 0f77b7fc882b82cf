//! The proxy and the client as programs meet them: real sockets, real TLS, the system's own resolver asking a
//! server of the test's, in a network of the test's own where public addresses are this machine's.

mod hostile;
mod outside;
mod world;
