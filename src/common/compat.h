/*
 * compat.h
 *		All that differs between the supported PostgreSQL versions, 15 to 18,
 *		stands here, so that the code below it reads the same for each.
 */
#ifndef EVENT_STORE_COMPAT_H
#define EVENT_STORE_COMPAT_H

#include "access/genam.h"
#include "access/tableam.h"
#include "catalog/objectaddress.h"
#include "commands/explain.h"
#include "storage/procarray.h"
#include "storage/sinvaladt.h"
#include "utils/acl.h"
#include "utils/rel.h"

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 190000
#error "event_store supports PostgreSQL 15, 16, 17 and 18"
#endif

/* 16 gave the macros of variable-length values a header of their own */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* 18 moved the ExplainProperty functions to a header of their own */
#if PG_VERSION_NUM >= 180000
#include "commands/explain_format.h"
#endif

/* 17 numbers processes, where backends had ids */
#if PG_VERSION_NUM >= 170000
#define compat_vxid_proc(vxid) ProcNumberGetProc((vxid).procNumber)
#else
#define compat_vxid_proc(vxid) BackendIdGetProc((vxid).backendId)
#endif

/* 18 counts index searches through one more argument */
#if PG_VERSION_NUM >= 180000
#define compat_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, 0)
#else
#define compat_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, nkeys, 0)
#endif

/* 16 tells the search in a B-tree of the table, 17 no more of a snapshot */
#include "access/nbtree.h"
#if PG_VERSION_NUM >= 170000
#define compat_bt_search(index, heap, key, buffer) \
	_bt_search(index, heap, key, buffer, BT_READ)
#elif PG_VERSION_NUM >= 160000
#define compat_bt_search(index, heap, key, buffer) \
	_bt_search(index, heap, key, buffer, BT_READ, NULL)
#else
#define compat_bt_search(index, heap, key, buffer) \
	_bt_search(index, key, buffer, BT_READ, NULL)
#endif

/* 17 can flush a logical message by itself */
#if PG_VERSION_NUM >= 170000
#define compat_log_logical_message(prefix, message, size) \
	LogLogicalMessage(prefix, message, size, true, false)
#else
#define compat_log_logical_message(prefix, message, size) \
	LogLogicalMessage(prefix, message, size, true)
#endif

/* 17 lets an index keep state over the rows of one command */
#if PG_VERSION_NUM >= 170000
#define compat_index_insert_cleanup(index, info) index_insert_cleanup(index, info)
#else
#define compat_index_insert_cleanup(index, info) ((void) 0)
#endif

/* 16 made one function of the many privilege checks */
#if PG_VERSION_NUM >= 160000
#include "catalog/pg_proc.h"
#define compat_function_aclcheck(oid, role) \
	object_aclcheck(ProcedureRelationId, oid, role, ACL_EXECUTE)
#else
#define compat_function_aclcheck(oid, role) \
	pg_proc_aclcheck(oid, role, ACL_EXECUTE)
#endif

/* 16 no longer asks for the relations that an expression can be nulled by */
#if PG_VERSION_NUM >= 160000
#define compat_build_expression_pathkey(root, expr, opno, rel) \
	build_expression_pathkey(root, expr, opno, rel, false)
#else
#define compat_build_expression_pathkey(root, expr, opno, rel) \
	build_expression_pathkey(root, expr, NULL, opno, rel, false)
#endif

/* 16 lets the parsing of names report errors softly */
#include "utils/regproc.h"
#if PG_VERSION_NUM >= 160000
#define compat_name_list(name) stringToQualifiedNameList(name, NULL)
#else
#define compat_name_list(name) stringToQualifiedNameList(name)
#endif

/* and made one function of the many checks for owners */
#if PG_VERSION_NUM >= 160000
#include "catalog/pg_class.h"
#define compat_owns_relation(oid, role) object_ownercheck(RelationRelationId, oid, role)
#else
#define compat_owns_relation(oid, role) pg_class_ownercheck(oid, role)
#endif

/* 16 renamed what tells of a relation's new file */
#if PG_VERSION_NUM >= 160000
#define compat_new_file_subid(rel) ((rel)->rd_newRelfilelocatorSubid)
#else
#define compat_new_file_subid(rel) ((rel)->rd_newRelfilenodeSubid)
#endif

/* 17 no longer leaves a relation cache entry with a file that is gone */
#if PG_VERSION_NUM >= 170000
#define compat_close_smgr(oid) ((void) 0)
#else
#define compat_close_smgr(oid) RelationCloseSmgrByOid(oid)
#endif

/* 17 wants the relation itself for the sequence of an identity column */
#include "catalog/dependency.h"
#if PG_VERSION_NUM >= 170000
#define compat_identity_sequence(rel, n) getIdentitySequence(rel, n, false)
#else
#define compat_identity_sequence(rel, n) getIdentitySequence(RelationGetRelid(rel), n, false)
#endif

/* 16 keeps privileges apart from tables, for the hook that checks them too */
#if PG_VERSION_NUM >= 160000
#define COMPAT_CHECK_PERMS_PARAMETERS List *tables, List *privileges, bool raises
#define COMPAT_CHECK_PERMS_ARGUMENTS tables, privileges, raises
#else
#define COMPAT_CHECK_PERMS_PARAMETERS List *tables, bool raises
#define COMPAT_CHECK_PERMS_ARGUMENTS tables, raises
#endif

/* 18 has generated columns that are not stored */
#if PG_VERSION_NUM >= 180000
#include "catalog/pg_attribute.h"
#define compat_is_virtual(att) ((att)->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL)
#else
#define compat_is_virtual(att) ((void) (att), false)
#endif

/* 17 ends transactions that take too long */
#define compat_has_transaction_timeout (PG_VERSION_NUM >= 170000)

/* 18 counts pages that are all frozen: what is done with such a column of pg_class */
#if PG_VERSION_NUM >= 180000
#define compat_with_all_frozen(act) act(relallfrozen, int32)
#else
#define compat_with_all_frozen(act) ((void) 0)
#endif

/* 18 says first that a function does not return */
#if PG_VERSION_NUM >= 180000
#define compat_noreturn pg_noreturn
#else
#define compat_noreturn pg_attribute_noreturn()
#endif

#endif
