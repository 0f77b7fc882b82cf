//! The program that the guest's kernel starts; and, called with a word, the first process of a container that
//! gets secrets.

use std::process::ExitCode;

use tabbify_guest_init::enter;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == enter::WORD) {
        return ExitCode::from(enter::run(words));
    }
    tabbify_guest_init::run();
    ExitCode::SUCCESS
}
