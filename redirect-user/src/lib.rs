//! The library behind the plugin, the operator's tool and the agent.
//!
//! Nouns are folders, verbs are files. In reading order: [`ids`] and [`path_error`] are small shared types;
//! [`policy`] says what is captured in a pod and reads it from the pod's annotations; [`node`] says where on
//! this machine things are; [`kernel`] is bpf(2), the programs and their pins; [`pod`] is a pod's network
//! namespace, user namespace and cgroup; [`enrol`] decides whether a pod is ours; [`attach`] is the steps of
//! ADD and DEL. [`gc`] collects, [`repair`] attaches again, [`upgrade`] replaces programs, [`inspect`],
//! [`ready`] and [`connections`] report, [`explain`] answers as the kernel would, [`reset`] ends connections
//! from before, [`doctor`] examines the node, [`verify`] tries it in a pod of its own.

pub mod attach;
pub mod connections;
pub mod doctor;
pub mod enrol;
pub mod explain;
pub mod gc;
pub mod ids;
pub mod inspect;
pub mod kernel;
pub mod node;
pub mod path_error;
pub mod pod;
pub mod policy;
pub mod printable;
pub mod ready;
pub mod repair;
pub mod reset;
pub mod upgrade;
pub mod verify;
