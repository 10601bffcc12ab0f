/* The verbs that libibverbs offers as inline functions only, as functions that can be linked to. Nothing more. */
#include <infiniband/verbs.h>

int rustydb_ibv_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	return ibv_post_send(qp, wr, bad);
}

int rustydb_ibv_post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	return ibv_post_srq_recv(srq, wr, bad);
}

int rustydb_ibv_poll_cq(struct ibv_cq *cq, int entries, struct ibv_wc *wc)
{
	return ibv_poll_cq(cq, entries, wc);
}

int rustydb_ibv_req_notify_cq(struct ibv_cq *cq, int solicited_only)
{
	return ibv_req_notify_cq(cq, solicited_only);
}

struct ibv_mr *rustydb_ibv_reg_mr(struct ibv_pd *pd, void *start, size_t bytes, int access)
{
	return ibv_reg_mr(pd, start, bytes, access);
}
