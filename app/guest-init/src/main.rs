//! The program that the guest's kernel starts.

fn main() {
    tabbify_guest_init::run();
}
