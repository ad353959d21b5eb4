//! Error class and status: the one mapping (spec 01 §0.6).

use corten_types::{Error, ErrorClass};

use crate::rpc;

const CODES: [(i32, ErrorClass); 16] = [
    (1, ErrorClass::Canceled),
    (2, ErrorClass::Unknown),
    (3, ErrorClass::InvalidArgument),
    (4, ErrorClass::DeadlineExceeded),
    (5, ErrorClass::NotFound),
    (6, ErrorClass::AlreadyExists),
    (7, ErrorClass::PermissionDenied),
    (8, ErrorClass::ResourceExhausted),
    (9, ErrorClass::FailedPrecondition),
    (10, ErrorClass::Aborted),
    (11, ErrorClass::OutOfRange),
    (12, ErrorClass::NotImplemented),
    (13, ErrorClass::Internal),
    (14, ErrorClass::Unavailable),
    (15, ErrorClass::DataLoss),
    (16, ErrorClass::Unauthenticated),
];

/// The status code of a class; Conflict and NotModified share that of FailedPrecondition.
#[must_use]
pub fn code_of(class: ErrorClass) -> i32 {
    match class {
        ErrorClass::Conflict | ErrorClass::NotModified => code_of(ErrorClass::FailedPrecondition),
        _ => CODES.iter().find(|(_, known)| *known == class).map_or(2, |(code, _)| *code),
    }
}

/// The error that a status stands for. The text is kept as it is.
#[must_use]
pub fn error_of(code: i32, message: &str) -> Error {
    let ends =
        |class: &ErrorClass| message == class.text() || message.ends_with(&format!(": {}", class.text()));
    let class =
        CODES.iter().find(|(known, _)| *known == code).map_or(ErrorClass::Unknown, |(_, class)| *class);
    let class = match class {
        ErrorClass::FailedPrecondition => {
            [ErrorClass::Conflict, ErrorClass::NotModified].into_iter().find(ends).unwrap_or(class)
        }
        _ => class,
    };
    Error::bare(class, message)
}

/// The status message that ttrpc carries.
#[must_use]
pub fn rpc_status(error: &Error) -> rpc::Status {
    rpc::Status { code: code_of(error.class()), message: error.message().to_owned(), details: Vec::new() }
}

/// The error of a status message.
#[must_use]
pub fn from_rpc_status(status: &rpc::Status) -> Error {
    error_of(status.code, &status.message)
}

/// The gRPC status of an error.
#[cfg(feature = "grpc")]
#[must_use]
pub fn to_status(error: Error) -> tonic::Status {
    tonic::Status::new(tonic::Code::from(code_of(error.class())), error.message())
}

/// The error of a gRPC status.
#[cfg(feature = "grpc")]
#[must_use]
pub fn from_status(status: &tonic::Status) -> Error {
    error_of(status.code() as i32, status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_survive_the_wire() {
        for error in [
            Error::not_found("image \"a\""),
            Error::new(ErrorClass::Conflict, "two writers"),
            Error::failed_precondition("namespace is required"),
            Error::unknown("odd"),
        ] {
            let back = from_rpc_status(&rpc_status(&error));
            assert_eq!((back.class(), back.message()), (error.class(), error.message()));
        }
    }
}
