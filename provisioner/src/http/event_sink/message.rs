//! The messages of Talos' event stream that we read: names, field numbers and types as Talos
//! publishes them (`events/events.proto` of siderolink, `machine/machine.proto` of Talos). Fields
//! that we have no use for are left out; protobuf skips them.
#![allow(missing_docs)]

use bytes::Bytes;
use prost::Message;

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// `events.EventRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct EventRequest {
    #[prost(message, optional, tag = "1")]
    pub data: Option<Any>,
}

/// `common.Error`.
#[derive(Clone, PartialEq, Message)]
pub struct Error {
    #[prost(string, tag = "2")]
    pub message: String,
}

/// `machine.SequenceEvent`.
#[derive(Clone, PartialEq, Message)]
pub struct SequenceEvent {
    #[prost(string, tag = "1")]
    pub sequence: String,
    /// Noop, start, stop.
    #[prost(int32, tag = "2")]
    pub action: i32,
    #[prost(message, optional, tag = "3")]
    pub error: Option<Error>,
}

/// `machine.PhaseEvent`.
#[derive(Clone, PartialEq, Message)]
pub struct PhaseEvent {
    #[prost(string, tag = "1")]
    pub phase: String,
    /// Start, stop.
    #[prost(int32, tag = "2")]
    pub action: i32,
}

/// `machine.ServiceStateEvent`.
#[derive(Clone, PartialEq, Message)]
pub struct ServiceStateEvent {
    #[prost(string, tag = "1")]
    pub service: String,
    /// 3 is running, 6 is failed.
    #[prost(int32, tag = "2")]
    pub action: i32,
    #[prost(string, tag = "3")]
    pub message: String,
}

/// `machine.ConfigLoadErrorEvent`, and `machine.ConfigValidationErrorEvent`, which is the same.
#[derive(Clone, PartialEq, Message)]
pub struct ConfigErrorEvent {
    #[prost(string, tag = "1")]
    pub error: String,
}

/// `machine.AddressEvent`.
#[derive(Clone, PartialEq, Message)]
pub struct AddressEvent {
    #[prost(string, tag = "1")]
    pub hostname: String,
    #[prost(string, repeated, tag = "2")]
    pub addresses: Vec<String>,
}

/// `machine.MachineStatusEvent`.
#[derive(Clone, PartialEq, Message)]
pub struct MachineStatusEvent {
    /// See [`super::news`].
    #[prost(int32, tag = "1")]
    pub stage: i32,
    #[prost(message, optional, tag = "2")]
    pub status: Option<MachineStatus>,
}

/// `machine.MachineStatusEvent.MachineStatus`.
#[derive(Clone, PartialEq, Message)]
pub struct MachineStatus {
    #[prost(bool, tag = "1")]
    pub ready: bool,
    #[prost(message, repeated, tag = "2")]
    pub unmet_conditions: Vec<UnmetCondition>,
}

/// `machine.MachineStatusEvent.MachineStatus.UnmetCondition`.
#[derive(Clone, PartialEq, Message)]
pub struct UnmetCondition {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub reason: String,
}
