//! Archives as engines make them and as nobody should: read, merged, flattened, cached.

mod cached;
mod hostile;
mod layers;
mod sample;
mod whole;
