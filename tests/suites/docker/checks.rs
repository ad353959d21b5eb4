//! What is checked, by subject.

pub mod build;
pub mod compose;
pub mod exec;
pub mod images;
pub mod life;
pub mod limits;
pub mod networks;
pub mod run;
pub mod survival;
pub mod swarm;
