/* Tells plugin.c that a new part of the measurement begins. */
int main(void)
{
	__asm__ volatile("xchg %%rbx,%%rbx" ::: "memory");
	return 0;
}
