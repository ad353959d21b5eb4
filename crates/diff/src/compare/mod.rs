//! Two trees compared into a layer: the changes are found in the order of their paths, and each becomes an entry of a
//! tar archive.
//!
//! What counts as changed is what the original takes for it: mode, owner, device, capability; and of everything but
//! folders size and time too, or the content where times have no fraction of a second. The trees may change
//! meanwhile; what vanishes was not there.

mod alone;
mod changes;
mod layer;
mod same;
mod side;

pub(crate) use alone::{Alone, is_plain_bind};
pub(crate) use changes::changes;
pub(crate) use layer::{Layer, latest};
pub(crate) use side::{Side, canceled};
