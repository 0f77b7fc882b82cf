//! The read node through its public interface, on the real log and real files.

mod audit;
mod conformance;
mod crash;
mod damage;
mod folds;
mod full_disk;
mod history;
mod http;
mod log_away;
mod rate;
mod rebuild;
mod support;
mod tenants;
