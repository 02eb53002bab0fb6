//! What happens when the program ends: a line of statistics, and the name of a heap that was joined.
#![allow(unsafe_code)] // a function in .fini_array

use super::{join, stats};

/// Runs when the program ends. Not by `atexit`, whose registration may allocate.
#[used]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".fini_array"))]
static AT_EXIT: extern "C" fn() = {
    extern "C" fn at_exit() {
        stats::print_at_exit();
        join::leave_name();
    }
    at_exit
};
