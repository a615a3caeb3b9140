//! What a peer must do to be measured.

use std::future::Future;
use std::pin::Pin;

use crate::Failure;
use crate::message::{Message, Stamp};

/// Something that runs on a contender's runtime.
pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A peer with all nodes of a subnet in this process. Its receivers wait at the board's gate before they read, and check off
/// what they have whole.
pub(crate) trait Contender: Send + Sync + 'static {
    /// Hands an artifact of `node` to every other node; waits where the peer makes its users wait.
    fn broadcast(
        &self,
        node: usize,
        message: Message,
    ) -> impl Future<Output = Result<(), Failure>> + Send + '_;

    /// Runs a task on the peer's runtime, near `node` where nodes have a place.
    fn spawn(&self, node: usize, task: Task);

    /// The artifact need not reach anyone any more. Most peers know no such thing.
    fn abort(&self, _node: usize, _stamp: Stamp) {}

    /// Closes a node as if its process had ended.
    fn close(&self, node: usize) -> impl Future<Output = Result<(), Failure>> + Send + '_;

    /// Starts it again, with its key and at its address.
    fn restart(&self, node: usize) -> impl Future<Output = Result<(), Failure>> + Send + '_;
}
