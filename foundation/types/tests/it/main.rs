//! The catalog of events as others see it: golden files, and the page made from it.

mod examples;
mod golden;
mod page;
