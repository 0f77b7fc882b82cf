//! Containers of a real engine, which the tests start in a network of their own; and files of images that
//! nobody should have made.

mod archive;
mod engine;
mod site;
