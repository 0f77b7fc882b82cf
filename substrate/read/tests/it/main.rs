//! The read node through its public interface, on the real log and real files.

mod audit;
mod folds;
mod history;
mod rate;
mod rebuild;
mod support;
mod tenants;
