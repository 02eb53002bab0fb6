//! Meeting in a heap: making or opening one by name, passing one over a socket, and finding one
//! another's objects in it.
//!
//! ```text
//! open    SharedHeap: create, open, open_or_create a heap with a name
//! pass    a region's descriptor over a Unix socket
//! roots   the directory of named objects
//! ```

mod open;
mod pass;
mod roots;

pub use open::SharedHeap;
pub use pass::{receive_region, send_region};
pub use roots::{Root, RootInfo, Roots};
