/* The signature of every function: as text, for inspect.signature, and as a table, for bind_args. */
#ifndef ABN_PYTHON_SIGNATURES_H
#define ABN_PYTHON_SIGNATURES_H

#include "args.h"

extern const signature forward_signature, normalize_signature, backward_signature, backward_reduce_signature,
    backward_apply_signature, statistics_signature, stream_signature, set_num_threads_signature, recompute_signature,
    save_signature, saved_by_signature, refuse_if_saved_signature, restore_writeable_signature, set_recorder_signature,
    context_from_state_signature;

extern const char forward_doc[], normalize_doc[], backward_doc[], backward_reduce_doc[], backward_apply_doc[],
    statistics_doc[], stream_doc[], set_num_threads_doc[], get_num_threads_doc[], info_doc[], recompute_doc[],
    release_doc[], save_doc[], saved_by_doc[], refuse_if_saved_doc[], restore_writeable_doc[], set_recorder_doc[],
    saved_release_doc[], saved_count_doc[], state_doc[], context_from_state_doc[];

#endif
