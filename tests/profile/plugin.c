/*
 * A QEMU plugin that counts the instructions a guest executes, by the address of their
 * block, between marks. An emulated processor's seconds mean nothing, and a sampler inside
 * it fires late; instruction counts repeat.
 *
 * The guest marks with `xchg %rbx,%rbx`, which does nothing and which no compiler emits
 * (mark.c). At each mark the counts since the last one are written to the file given as
 * out=FILE: a line `mark N`, then `ADDRESS INSTRUCTIONS` for each block of the kernel that
 * ran, and `user INSTRUCTIONS` for all else. run.sh makes a table of it.
 *
 * Declared here, since Debian ships no header: QEMU's include/qemu/qemu-plugin.h, API
 * version 1 (QEMU 4.2 to 9.0). For one processor thread (-accel tcg,thread=single).
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { NO_REGISTERS = 0 };
typedef void (*exec_cb)(unsigned int cpu, void *data);

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t n);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
		void (*cb)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, exec_cb cb, int flags,
		void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, exec_cb cb, int flags,
		void *data);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

#define KERNEL UINT64_C(0xffff800000000000)
static const unsigned char MARK[] = { 0x48, 0x87, 0xdb };

struct block {
	uint64_t address, instructions, executions;
	struct block *next;
};

/* A block may be translated anew at any time; its counter is found again by address and
 * length, and never freed: translated code points at it. */
static struct block *table[1 << 16];
static uint64_t marks;
static FILE *out;

static struct block *find(uint64_t address, uint64_t instructions)
{
	uint64_t key = (address ^ (address >> 16) ^ (instructions << 3)) & 0xffff;
	struct block *b;

	for (b = table[key]; b; b = b->next)
		if (b->address == address && b->instructions == instructions)
			return b;
	b = calloc(1, sizeof *b);
	if (!b)
		abort();
	b->address = address;
	b->instructions = instructions;
	b->next = table[key];
	table[key] = b;
	return b;
}

static void count(unsigned int cpu, void *data)
{
	(void)cpu;
	((struct block *)data)->executions++;
}

static void mark(unsigned int cpu, void *data)
{
	uint64_t user = 0;

	(void)cpu;
	(void)data;
	fprintf(out, "mark %" PRIu64 "\n", ++marks);
	for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
		for (struct block *b = table[i]; b; b = b->next) {
			uint64_t n = b->executions * b->instructions;

			b->executions = 0;
			if (b->address < KERNEL)
				user += n;
			else if (n)
				fprintf(out, "%" PRIx64 " %" PRIu64 "\n", b->address, n);
		}
	}
	fprintf(out, "user %" PRIu64 "\n", user);
	fflush(out);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	size_t n = qemu_plugin_tb_n_insns(tb);
	uint64_t address = qemu_plugin_tb_vaddr(tb);

	(void)id;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, count, NO_REGISTERS, find(address, n));
	if (address >= KERNEL)
		return;
	for (size_t i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);

		if (qemu_plugin_insn_size(insn) == sizeof MARK &&
		    !memcmp(qemu_plugin_insn_data(insn), MARK, sizeof MARK))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, mark, NO_REGISTERS, NULL);
	}
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id,
		const qemu_info_t *info, int argc, char **argv)
{
	(void)info;
	for (int i = 0; i < argc; i++)
		if (!strncmp(argv[i], "out=", 4))
			out = fopen(argv[i] + 4, "w");
	if (!out) {
		fprintf(stderr, "plugin.c: out=FILE is required, and must be writable\n");
		return -1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
