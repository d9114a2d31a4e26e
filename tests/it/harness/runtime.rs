//! Where the harness's wires, upstreams and connections run: apart from the test's own runtime.

use std::sync::LazyLock;

use tokio::runtime::{Builder, Handle, Runtime};

/// Two threads of their own.
pub(super) fn background() -> &'static Handle {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("harness")
            .enable_all()
            .build()
            .expect("a runtime of two threads")
    });
    RUNTIME.handle()
}
